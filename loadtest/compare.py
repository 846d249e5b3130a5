"""`loadtest compare A B…`: the same load on several servers in alternation, judged side by side."""

import asyncio
import sys
from collections.abc import Sequence

import msgspec
from rich.console import Console

from loadtest.alternation import Alternation
from loadtest.compare_flags import Options, read_options
from loadtest.compare_result import CompareResult
from loadtest.comparison import CompareRun
from loadtest.datasets import Dataset, api_of
from loadtest.environment import read_environment
from loadtest.servers import Server, running
from loadtest.session import Bench, Session, open_bench, open_dataset, raise_file_limit

DONE, FAILED, INVALID = 0, 1, 3


def compare(argv: Sequence[str]) -> int:
    """The command. Raises UsageError."""
    options = read_options(argv)
    environment = read_environment(["compare", *argv])
    dataset = open_dataset(options.settings)
    api_of(dataset.first, options.settings.api)
    progress = None if options.quiet else Console(stderr=True, soft_wrap=True)
    console = Console(width=None if sys.stdout.isatty() else 160, soft_wrap=True)

    def tell(line: str) -> None:
        if progress is not None:
            progress.print(line, markup=False, highlight=False)

    with running(options.topologies, options.launch, tell) as children:
        benches = _open_benches(options, children, dataset)
        result = CompareResult(options, environment, benches, console)

        def dead() -> dict[str, str]:
            return {child.name: reason for child in children if (reason := child.why_dead()) is not None}

        runs = Alternation(benches, options.settings, options.slos, result.add, dead)
        raise_file_limit()
        session = Session(progress)
        result.begin()
        asyncio.run(runs.run(session, options.rates, options.rounds))
        result.finish(runs.failure)
    return session.exit_code or exit_code(runs.runs, options.names, runs.failure)


def _open_benches(options: Options, children: Sequence[Server], dataset: Dataset) -> dict[str, Bench]:
    urls = options.urls | {child.name: child.url for child in children}
    return {
        name: open_bench(msgspec.structs.replace(options.settings, url=urls[name]), dataset) for name in options.names
    }


def exit_code(runs: Sequence[CompareRun], names: Sequence[str], failure: str | None) -> int:
    """Of a comparison that no signal ended. It is invalid when some load was not validly run on every server."""
    answered = {run.server for run in runs if any(record.outcome == "ok" for record in run.requests)}
    if failure is not None or any(name not in answered for name in names):
        return FAILED
    valid = {(run.rate, run.round, run.seed, run.server) for run in runs if run.is_valid}
    for rate, round_ in {(run.rate, run.round) for run in runs}:
        seeds = {run.seed for run in runs if (run.rate, run.round) == (rate, round_)}
        if not any(all((rate, round_, seed, name) in valid for name in names) for seed in seeds):
            return INVALID
    return DONE
