"""`python -m loadtest.suite`, which `make bench` runs: a small fixed set of loads on the project's own server.

Every load is sent several times with fixed seeds; the medians are saved and compared with those of the last suite on
this machine. The code says whether anything became worse, so that a nightly job can act on it.
"""

import json
import re
import shlex
import subprocess
import sys
from argparse import Namespace
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import msgspec

from loadtest import page
from loadtest.environment import read_environment
from loadtest.errors import UsageError
from loadtest.flags import Parser, typed
from loadtest.results import save
from loadtest.suite_results import (
    Case,
    Figures,
    Machine,
    Suite,
    figures_of,
    medians,
    newest,
    read,
    regressions,
    table,
    widest_spread,
)
from loadtest.suite_server import make_checkpoint, started
from loadtest.units import parse_fraction

TOPOLOGIES = ("mixed=1", "prefill=1,decode=1")
PACKAGES = ("runtime", "jax", "jaxlib", "numpy", "uvicorn", "h11", "msgspec")
REPEATS = 3
FINE, FOUND_WORSE, USAGE, NOT_MEASURED = 0, 1, 2, 3

# The client shares the cores with the server: how late it may be is part of what is compared.
COMMON = ("--quiet", "--warmup", "4", "--max-lag", "250ms")
LOADS: dict[str, dict[str, tuple[str, ...]]] = {
    "demo": {
        "steady": ("--rate", "8", "--duration", "10s", "--input-tokens", "128", "--output-tokens", "32"),
        "full": ("--concurrency", "16", "--requests", "128", "--input-tokens", "128", "--output-tokens", "64"),
    },
    "0.3b": {
        "steady": ("--rate", "0.75", "--duration", "24s", "--input-tokens", "128", "--output-tokens", "16"),
        "full": ("--concurrency", "4", "--requests", "12", "--input-tokens", "128", "--output-tokens", "24"),
    },
}
"""By model, fixed: figures of other loads are other figures."""

SERVER_FLAGS: dict[str, tuple[str, ...]] = {
    "demo": (),
    # As little to compile as the loads need: the first suite of a machine has to.
    "0.3b": ("--context-length", "512", "--chunked-prefill-size", "128", "--max-running-requests", "4"),
}
"""Of `runtime up`, by model."""

QUICK = {
    "steady": ("--rate", "20", "--requests", "8", "--input-tokens", "16", "--output-tokens", "4"),
    "full": ("--concurrency", "4", "--requests", "8", "--input-tokens", "16", "--output-tokens", "4"),
}

_DESCRIPTION = """\
Starts the project's server per model and topology, sends fixed loads three times each, saves the medians as
DATE-COMMIT.json, and compares them with the newest earlier file of the same machine and model."""

_EPILOG = """\
exit codes: 0 nothing became worse by more than the tolerance; 1 something did, or requests failed; 2 wrong flags, or a
server that does not start; 3 nothing became worse, but in a case the client was too late to measure most repeats. All
but 2 save the figures."""


def main(argv: Sequence[str] | None = None) -> int:
    """The command; a mistake becomes one line and code 2."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        return _suite(arguments)
    except UsageError as error:
        sys.stderr.write(f"loadtest.suite: {' '.join(str(error).split())}\n")
        return USAGE


def _suite(argv: Sequence[str]) -> int:
    flags = _parser().parse_args(argv)
    models = _models(flags)
    try:
        flags.folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--folder {flags.folder}: {error.strerror or error}; allowed: a folder") from None
    environment = read_environment(argv)
    machine = Machine(environment.processor, environment.cores, environment.system)
    # Looked for first: a file that cannot be read is told before the measuring, not after.
    path = flags.against or newest(flags.folder, machine, models)
    before = read(path) if path is not None else None
    command = shlex.join(["python", "-m", "loadtest.suite", *argv])
    after = Suite(
        date=environment.date,
        commit=_commit(),
        machine=machine,
        versions={name: version for name in PACKAGES if (version := _version(name)) is not None},
        environment=msgspec.to_builtins(environment) | {"command": command},
        cases=tuple(_measure(models, flags)),
    )
    stamp = re.sub(r"[-:]|\+.*", "", after.date)
    saved = flags.folder / f"{stamp}-{after.commit}.json"
    save(msgspec.to_builtins(after), saved)
    return _judge(before, after, flags.tolerance, saved)


def _measure(models: Sequence[str], flags: Namespace) -> Iterator[Case]:
    """Every load on every model and topology; says on standard output how far it is."""
    for model in models:
        for topology in ("given",) if flags.url is not None else TOPOLOGIES:
            with _server(model, topology, flags.url, flags.folder) as url:
                for name, load in (QUICK if flags.quick else LOADS[model]).items():
                    case = _case(model, topology, name, load, url, 1 if flags.quick else REPEATS)
                    sys.stdout.write(f"{case.name}: {len(case.repeats)} measured\n")
                    sys.stdout.flush()
                    yield case


def _judge(before: Suite | None, after: Suite, tolerance: float, path: Path) -> int:
    """Prints the table and what is worse; the exit code."""
    said = ["", page.markdown(table(before, after, tolerance))]
    if spreads := widest_spread(after):
        said.append(f"Largest spread between repeats of a case: {', '.join(spreads)}.")
    if before is None:
        said.append("Nothing to compare with: no earlier suite of this machine and model.")
    else:
        said.append(f"Compared with {before.commit} of {before.date}; worse is by more than {tolerance:.0%}.")
        said += [] if before.machine == after.machine else ["That was ANOTHER MACHINE: its figures say little."]
    worse = regressions(before, after, tolerance) if before is not None else []
    said += [f"WORSE: {line}" for line in worse]
    said += [f"FAILED: {case.name}: {problem}" for case in after.cases for problem in case.problems]
    said += [f"INVALID: {case.name}: {reason}" for case in after.cases for reason in case.invalid]
    sys.stdout.write("\n".join([*said, f"saved {path}"]) + "\n")
    if worse or any(case.problems for case in after.cases):
        return FOUND_WORSE
    return FINE if all(case.is_measured for case in after.cases) else NOT_MEASURED


def _case(model: str, topology: str, name: str, load: Sequence[str], url: str, num_repeats: int) -> Case:
    repeats, problems, invalid = list[Figures](), list[str](), list[str]()
    for seed in range(num_repeats):
        run = _run(url, [*load, *COMMON, "--seed", str(seed)])
        if isinstance(run, str):
            problems.append(f"seed {seed}: {run}")
        elif run["stopped"] is not None or run["failed"]:
            problems.append(f"seed {seed}: {run['stopped'] or ', '.join(run['errors_by_reason'])}")
        elif run["invalid"] is not None:
            invalid.append(f"seed {seed}: {run['invalid']}")
        else:
            repeats.append(figures_of(run))
    return Case(
        model=model,
        topology=topology,
        load=name,
        asked=(*SERVER_FLAGS.get(model, ()), *load, *COMMON),
        repeats=tuple(repeats),
        medians=medians(repeats),
        problems=tuple(problems),
        invalid=tuple(invalid),
    )


def _run(url: str, flags: Sequence[str]) -> dict[str, Any] | str:
    """One load by a client process of its own: the run's file, or why there is none."""
    with TemporaryDirectory() as folder:
        out = Path(folder, "run.json")
        command = [sys.executable, "-m", "loadtest", "run", url, *flags, "--out", str(out)]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
        if not out.is_file():
            return " / ".join(done.stdout.strip().splitlines()[-2:]) or f"exit code {done.returncode}"
        run: dict[str, Any] = json.loads(out.read_bytes())
        return run


def _server(model: str, topology: str, url: str | None, folder: Path) -> AbstractContextManager[str]:
    if url is not None:
        return nullcontext(url)
    arguments = ["--topology", topology, "--random-seed", "0", *SERVER_FLAGS[model]]
    if model != "demo":
        weights = folder / "models" / model
        make_checkpoint(model, weights)
        arguments += ["--model", str(weights)]
    return started(arguments, folder / "server.log")


def _models(flags: Namespace) -> Sequence[str]:
    """Which to measure: of a server that is there already, what it has is not known."""
    if flags.url is not None:
        if not flags.quick:
            raise UsageError("--url: allowed: with --quick, whose load does not depend on the model")
        return [flags.url]
    models = ["demo"] if flags.quick and flags.models is None else (flags.models or ",".join(LOADS)).split(",")
    for model in models:
        if model not in LOADS:
            raise UsageError(f"--models {model!r}: allowed: {', '.join(LOADS)}")
    return models


def _commit() -> str:
    """Of the working directory, marked where it has changes; `unknown` without git."""
    command = ["git", "describe", "--always", "--abbrev=8", "--dirty", "--exclude=*"]
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=False)
    except OSError:
        return "unknown"
    return done.stdout.strip() or "unknown"


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _parser() -> Parser:
    parser = Parser(prog="python -m loadtest.suite", allow_abbrev=False, description=_DESCRIPTION, epilog=_EPILOG)
    parser.add_argument("--models", metavar="LIST", help=f"comma separated (default: {','.join(LOADS)})")
    parser.add_argument("--against", type=Path, metavar="FILE", help="compare with this (default: the newest earlier)")
    parser.add_argument(
        "--tolerance", type=typed(parse_fraction), default=0.15, metavar="F", help="what is noise (default: 15%%)"
    )
    folder = Path("build", "bench")
    parser.add_argument("--folder", type=Path, default=folder, metavar="DIR", help="of results (default: build/bench)")
    parser.add_argument("--quick", action="store_true", help="a few requests once, to see that it works; demo alone")
    parser.add_argument("--url", metavar="URL", help="with --quick: a server that is there, instead of starting some")
    return parser


if __name__ == "__main__":
    sys.exit(main())
