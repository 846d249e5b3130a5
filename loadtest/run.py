"""`loadtest run URL`: one load against one server, judged and saved."""

import asyncio
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

import msgspec
from rich.console import Console

from loadtest.driver import Phase
from loadtest.environment import read_environment
from loadtest.flags import Parser, add_arrival_flags, add_load_flags, add_slo_flag, add_timing_flag
from loadtest.metrics import measure
from loadtest.record import Record
from loadtest.results import Result, check_writable, save, to_json
from loadtest.session import Session, Workload, all_failed, open_bench, raise_file_limit, refuse_empty
from loadtest.settings import LoadSettings
from loadtest.slo import Objective, parse_slo
from loadtest.statistics import Summary
from loadtest.summary import print_summary
from loadtest.validity import find_warnings, lag_limit_s, why_invalid

MET, MISSED, INVALID = 0, 1, 3

_DESCRIPTION = """\
Sends requests to an OpenAI-compatible server and measures what its users would see. TTFT, TPOT, ITL and E2E are as
vLLM defines them, but counted from when a request was due, not from when this client came to send it."""

_EPILOG = """\
exit codes: 0 done, every objective met; 1 one was missed, or requests failed; 2 wrong flags, no server, no data;
3 invalid, because this client was the bottleneck; 130 after Ctrl-C. All but 2 save what was measured."""


def run(argv: Sequence[str]) -> int:
    """The command. Raises UsageError."""
    flags = vars(_parser().parse_args(argv))
    asked, out, is_quiet = flags.pop("slo"), flags.pop("out"), flags.pop("quiet")
    objectives = with_error_rate(asked)
    settings = msgspec.convert(flags, LoadSettings)
    path = out or Path(f"loadtest-{datetime.now():%Y%m%d-%H%M%S}.json")
    check_writable(path)
    environment = read_environment(["run", *argv])
    bench = open_bench(settings)
    warmup, load = bench.warmup(), bench.load()
    refuse_empty(load)
    raise_file_limit()
    session = Session(None if is_quiet else Console(stderr=True))
    warm, measured = asyncio.run(_drive(session, warmup, load))
    metrics = measure(measured.records, objectives)
    limit_s = lag_limit_s(metrics, settings.max_lag)
    result = Result(
        setup=settings.shown(),
        environment=environment,
        server=bench.server,
        metrics=metrics,
        verdicts=tuple(metrics.judge(objectives)),
        records=tuple(measured.records),
        warmup=tuple(warm.records),
        tick_lag_p99_s=Summary.of(measured.tick_lags_s).percentile(99) or 0.0,
        lag_limit_s=limit_s,
        invalid=why_invalid(metrics, measured.tick_lags_s, limit_s),
        stopped=measured.stopped,
        warnings=tuple(find_warnings(metrics, bench.dataset.num_repeated) + _timing_notes(settings, measured.records)),
    )
    save(to_json(result), path)
    console = Console(width=None if sys.stdout.isatty() else 160)
    print_summary(result, console)
    console.print(f"saved {path}", markup=False, highlight=False, soft_wrap=True)
    return session.exit_code or exit_code(result)


async def _drive(session: Session, warmup: Workload, load: Workload) -> tuple[Phase, Phase]:
    async with session:
        warm = await session.run(warmup, "warm-up")
        measured = Phase(warm.client, load.requests, load.plan)
        if (reason := all_failed(warm) or warm.stopped) is not None:
            measured.stop(reason)
            return warm, measured
        return warm, await session.run(load, "measured")


def _timing_notes(settings: LoadSettings, records: Sequence[Record]) -> list[str]:
    is_told = any(record.timing is not None for record in records)
    return (
        ["the server tells no stage times: --timing is for this project's"] if settings.timing and not is_told else []
    )


def with_error_rate(objectives: Sequence[Objective]) -> tuple[Objective, ...]:
    """No request may fail unless the user says how many may."""
    if any(objective.kind == "error_rate" for objective in objectives):
        return tuple(objectives)
    return (*objectives, *parse_slo("error_rate=0"))


def exit_code(result: Result) -> int:
    """Of a run that no signal ended. A server that answered nothing is not the client's fault."""
    if result.metrics.completed and result.invalid is not None:
        return INVALID
    return MET if result.is_met and result.stopped is None and result.metrics.completed else MISSED


def _parser() -> Parser:
    parser = Parser(prog="loadtest run", allow_abbrev=False, description=_DESCRIPTION, epilog=_EPILOG)
    add_load_flags(parser)
    add_arrival_flags(parser)
    add_slo_flag(parser)
    add_timing_flag(parser)
    parser.add_argument("--out", type=Path, metavar="FILE", help="result as JSON (default: loadtest-DATE-TIME.json)")
    parser.add_argument("--quiet", action="store_true", help="no progress on standard error")
    return parser
