"""`loadtest eval URL`: Pass@1 of a served model, in the form of the reference page."""

import asyncio
import sys
import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console

from loadtest.accuracy.answers import AnswerFile, Settings
from loadtest.accuracy.comparison import boxed, check_installed
from loadtest.accuracy.evaluation import Evaluation
from loadtest.accuracy.flags import EvalFlags, eval_parser
from loadtest.accuracy.problems import PROMPT, Problem, digest, read_problems
from loadtest.accuracy.score import count, rows
from loadtest.accuracy.tables import counted, grid, levels, page, results_line
from loadtest.connection import parse_address
from loadtest.environment import Environment, read_environment
from loadtest.errors import UsageError
from loadtest.results import check_writable, save
from loadtest.server import inspect

FORMAT = "loadtest-eval-result/1"
DONE, FAILED = 0, 1


class Setup(msgspec.Struct, frozen=True, kw_only=True):
    """What a command is about, known before the first question."""

    flags: EvalFlags
    path: Path
    problems: tuple[Problem, ...]
    settings: Settings
    server: dict[str, Any]
    environment: Environment


def evaluate(argv: Sequence[str]) -> int:
    """The command. Raises UsageError."""
    setup, started = _prepare(argv), time.monotonic()
    flags, file = setup.flags, AnswerFile(setup.path, setup.settings)
    console = None if flags.quiet else Console(stderr=True, soft_wrap=True)
    evaluation = Evaluation(flags, setup.settings, setup.problems, file, console)
    try:
        with file:
            signalled = asyncio.run(evaluation.run())
    except OSError as error:  # a disk that is full
        raise UsageError(f"--output {str(setup.path)!r}: {error.strerror or error}") from None
    if signalled is None and evaluation.failure is None:
        _tell(setup, evaluation, time.monotonic() - started)
        return DONE
    where = f"{evaluation.num_answered} of {evaluation.total} answers are in {setup.path}"
    said = evaluation.failure or "interrupted"
    sys.stderr.write(f"loadtest eval: {said}; {where}, and with --output {setup.path} the same command goes on\n")
    return FAILED if signalled is None else signalled


def _prepare(argv: Sequence[str]) -> Setup:
    flags = msgspec.convert(vars(eval_parser().parse_args(argv)), EvalFlags)
    check_installed()
    path = flags.output or Path(f"loadtest-eval-{datetime.now():%Y%m%d-%H%M%S}.jsonl")
    _check_output(path)
    name, problems = read_problems(flags.data, flags.limit)
    model, server = inspect(parse_address(flags.url), flags.api_key, flags.model)
    settings = Settings(
        url=server["url"],
        model=model,
        data=name,
        problems=len(problems),
        digest=digest(problems),
        prompt=PROMPT,
        temperature=flags.temperature,
        top_p=flags.top_p,
        max_tokens=flags.max_tokens,
        seed=flags.seed,
    )
    return Setup(
        flags=flags,
        path=path,
        problems=problems,
        settings=settings,
        server=server,
        environment=read_environment(["eval", *argv]),
    )


def _check_output(path: Path) -> None:
    if path.suffix != ".jsonl":
        raise UsageError(f"--output {str(path)!r}: allowed: a file that ends in .jsonl; .json and .md come beside it")
    for one in (path, path.with_suffix(".json"), path.with_suffix(".md")):
        check_writable(one, "--output")


def _tell(setup: Setup, evaluation: Evaluation, took_s: float) -> None:
    """Prints the result, and saves it as JSON and Markdown."""
    flags, settings = setup.flags, setup.settings
    scored = rows(setup.problems, evaluation.grades, flags.repeats)
    counts, label = count(evaluation.answers, evaluation.grades), flags.label or settings.model
    for repeat in range(flags.repeats):
        sys.stdout.write(grid(settings.model, settings.data, scored, repeat) + "\n")
    sys.stdout.write(f"{results_line(label, scored)}\n\n{levels(scored)}\n\n{counted(counts)}\n")
    values: dict[str, Any] = {"format": FORMAT, "date": setup.environment.date, "label": label}
    values |= {"settings": settings, "repeats": flags.repeats, "batch": flags.batch, "server": setup.server}
    values |= {"environment": setup.environment, "asked_now": evaluation.num_asked, "took_s": round(took_s, 3)}
    values |= {"rows": scored, "counts": counts, "answers": _entries(evaluation)}
    save(values, setup.path.with_suffix(".json"))
    took = f"This run took {took_s:.0f} s for {evaluation.num_asked} of them, {flags.batch} at a time."
    markdown = page(settings, setup.environment, label, scored, counts, took)
    setup.path.with_suffix(".md").write_text(markdown)
    sys.stdout.write(f"saved {setup.path}, and beside it .json and .md\n")


def _entries(evaluation: Evaluation) -> list[dict[str, Any]]:
    return [
        msgspec.structs.asdict(one) | {"boxed": boxed(one.text), "grade": evaluation.grades[one.repeat, one.unique_id]}
        for one in evaluation.answers
    ]
