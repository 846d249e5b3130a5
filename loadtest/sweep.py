"""`loadtest sweep URL`: finds the highest rate that a server holds, and says how sure that is."""

import asyncio
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console

from loadtest.driver import Phase
from loadtest.environment import read_environment
from loadtest.errors import UsageError
from loadtest.flags import Parser, add_gap_flags, add_load_flags, add_slo_flag, typed
from loadtest.metrics import Metrics, measure
from loadtest.record import Record
from loadtest.recovery import recover
from loadtest.results import check_writable, save
from loadtest.search import Finding, Goal, Judged, Trial, decide, is_growing, is_hopeless, judge
from loadtest.server import engine_line
from loadtest.session import Bench, Session, all_failed, open_bench, raise_file_limit
from loadtest.settings import LoadSettings
from loadtest.slo import Objective, is_inside, request_limits_s
from loadtest.units import parse_duration_s, parse_fraction, parse_positive
from loadtest.validity import lag_limit_s, why_invalid

FORMAT = "loadtest-sweep/1"
LEAST_REQUESTS = 50
HOPELESS = "too many requests outside the SLO already"
FOUND, NOT_FOUND, CLIENT = 0, 1, 3

_DESCRIPTION = """\
Finds the highest rate at which a fraction of the requests meets the latencies of --slo: the rate doubles until it is
too much, then the gap is halved. A rate counts as stable when the 95 % interval of that fraction lies above the target
in two trials with different seeds and latency does not grow; what is too close to call is never called stable."""

_EPILOG = """\
exit codes: 0 a stable rate was found; 1 there is none, or requests failed from the start; 2 wrong flags, no server, no
data; 3 this client became the bottleneck first; 130 after Ctrl-C. All but 2 save the trials made."""


class Attempted(msgspec.Struct, frozen=True):
    """A trial with its figures."""

    trial: Trial
    metrics: Metrics
    stopped: str | None
    invalid: str | None


class Sweep:
    """The trials of one command."""

    def __init__(self, bench: Bench, settings: LoadSettings, objectives: Sequence[Objective], goal: Goal) -> None:
        self._bench, self._settings, self._goal, self._objectives = bench, settings, goal, objectives
        self._limits_s = request_limits_s(objectives)
        self.attempts = list[Attempted]()
        self.failure: str | None = None

    @property
    def trials(self) -> list[Trial]:
        """So far."""
        return [attempt.trial for attempt in self.attempts]

    async def run(self, session: Session, console: Console) -> Finding | None:
        """Tries rates until the search ends; None when a signal or a dead server ended it."""
        async with session:
            self.failure = all_failed(await session.run(self._bench.warmup(), "warm-up"))
            while self.failure is None and session.exit_code is None:
                step = decide(self.trials, self._goal)
                if isinstance(step, Finding):
                    return step
                await self._attempt(session, step.rate, console)
        return None

    async def _attempt(self, session: Session, rate: float, console: Console) -> None:
        count = max(LEAST_REQUESTS, round(rate * (self._settings.duration or 0)))
        load = self._bench.load(rate, count, self._settings.seed + len(self.attempts))
        missed = 0

        def stop_if(record: Record) -> str | None:
            nonlocal missed
            missed += record.outcome == "failed" or (record.outcome == "ok" and not is_inside(record, self._limits_s))
            return HOPELESS if is_hopeless(missed, count, self._goal.attainment) else None

        phase = await session.run(load, f"{rate:.3g} requests/s", stop_if)
        if phase.stopped not in (None, HOPELESS):
            self.failure = phase.stopped
            return
        if phase.stopped == HOPELESS:
            await recover(session, lambda: self._bench.warmup(1), lambda probe: is_inside(probe, self._limits_s))
        self.attempts.append(self._judge(phase, rate))
        line = _trial_line(self.attempts[-1], judge(self.trials, self._goal.attainment))
        console.print(line, markup=False, highlight=False, soft_wrap=True)

    def _judge(self, phase: Phase, rate: float) -> Attempted:
        metrics = measure(phase.records, self._objectives)
        counted = sum(record.outcome in ("ok", "failed") for record in phase.records)
        is_hopeless_already = phase.stopped == HOPELESS
        invalid = why_invalid(metrics, phase.tick_lags_s, lag_limit_s(metrics, self._settings.max_lag))
        trial = Trial(
            rate=rate,
            inside=metrics.inside,
            total=phase.total if is_hopeless_already else counted,
            is_growing=not is_hopeless_already and is_growing(phase.records),
            is_client_late=invalid is not None,
        )
        return Attempted(trial, metrics, phase.stopped, invalid)


def sweep(argv: Sequence[str]) -> int:
    """The command. Raises UsageError."""
    flags = vars(_parser().parse_args(argv))
    objectives, out = flags.pop("slo"), flags.pop("out")
    is_quiet, goal = flags.pop("quiet"), _goal(flags)
    if not request_limits_s(objectives):
        raise UsageError("--slo: needs a limit of TTFT, TPOT or E2E, such as ttft_p99=500ms")
    settings = msgspec.convert(flags | {"rate": goal.first_rate}, LoadSettings)
    path = out or Path(f"loadtest-sweep-{datetime.now():%Y%m%d-%H%M%S}.json")
    check_writable(path)
    environment = read_environment(["sweep", *argv])
    bench = open_bench(settings)
    raise_file_limit()
    session, made = (
        Session(None if is_quiet else Console(stderr=True)),
        Sweep(bench, settings, objectives, goal),
    )
    console = Console(soft_wrap=True)
    if (engine := engine_line(bench.server)) is not None:
        console.print(engine, markup=False, highlight=False)
    finding = asyncio.run(made.run(session, console))
    if bench.dataset.num_repeated:
        note = f"note: {bench.dataset.num_repeated} requests repeat earlier ones; a prefix cache saw them"
        console.print(note, highlight=False)
    console.print(said := conclusion(finding, made.failure), markup=False, highlight=False)
    values: dict[str, Any] = {
        "format": FORMAT,
        "date": environment.date,
        "conclusion": said,
        "finding": finding,
        "goal": goal,
    }
    values |= {"slo": [objective.text for objective in objectives], "setup": settings.shown(), "server": bench.server}
    values |= {"environment": environment, "rates": judge(made.trials, goal.attainment)}
    values["trials"] = [
        msgspec.structs.asdict(one.trial) | {"stopped": one.stopped, "invalid": one.invalid} | one.metrics.to_json()
        for one in made.attempts
    ]
    save(values, path)
    console.print(f"saved {path}", markup=False, highlight=False)
    return session.exit_code or _exit_code(finding)


def conclusion(finding: Finding | None, failure: str | None) -> str:
    """The result in a sentence."""
    if finding is None:
        return f"STOPPED EARLY: {failure or 'interrupted'}"
    if finding.ending == "client":
        held = f"; {_held(finding.stable)}" if finding.stable else ""
        return f"INVALID beyond this: the client was the bottleneck before the server was{held}"
    if finding.stable is None:
        return f"no rate is stable: even {finding.limit:.3g} requests/s is too much"
    if finding.ending == "no limit":
        return f"{_held(finding.stable)}; that is the highest rate asked for, and the server holds it"
    limit = f"; {finding.limit:.4g} requests/s is too much or too close to call" if finding.limit else ""
    unsure = " so far: the trials that were allowed are used up" if finding.ending == "out of trials" else ""
    return f"{_held(finding.stable)}{limit}{unsure}"


def _held(stable: Judged) -> str:
    return (
        f"highest stable rate {stable.rate:.4g} requests/s: {stable.inside} of {stable.total} requests inside the SLO "
        f"({stable.inside / stable.total:.1%}, 95 % interval {stable.low:.1%} to {stable.high:.1%})"
    )


def _trial_line(attempt: Attempted, judged: Sequence[Judged]) -> str:
    trial = attempt.trial
    together = next((one for one in judged if one.rate == trial.rate), None)
    low, high = (together.low, together.high) if together is not None else (0.0, 1.0)
    notes = [str(together.verdict)] if together is not None else []
    notes += ["latency grows"] if trial.is_growing else []
    notes += ["stopped early"] if attempt.stopped else []
    notes += [attempt.invalid] if attempt.invalid else []
    return (
        f"{trial.rate:8.3g} requests/s: {trial.inside}/{trial.total} inside, together {low:.1%} to "
        f"{high:.1%}, goodput {attempt.metrics.goodput:.3g}: {', '.join(notes)}"
    )


def _exit_code(finding: Finding | None) -> int:
    if finding is not None and finding.ending == "client":
        return CLIENT
    return FOUND if finding is not None and finding.stable is not None else NOT_FOUND


def _goal(flags: dict[str, object]) -> Goal:
    names = {"attainment": "attainment", "from": "first_rate", "to": "last_rate", "precision": "precision"}
    goal = msgspec.convert({field: flags.pop(flag) for flag, field in names.items()}, Goal)
    if goal.attainment in (0, 1) or goal.precision <= 0:
        raise UsageError("--attainment and --precision: allowed: above 0, and an attainment below 1")
    if not goal.first_rate <= goal.last_rate < float("inf"):
        raise UsageError("--from and --to: allowed: a lowest and a highest rate")
    return goal


def _parser() -> Parser:
    parser = Parser(prog="loadtest sweep", allow_abbrev=False, description=_DESCRIPTION, epilog=_EPILOG)
    add_load_flags(parser)
    add_gap_flags(parser)
    add_slo_flag(parser, is_required=True)
    group = parser.add_argument_group("search")
    group.add_argument(
        "--attainment", type=typed(parse_fraction), default=0.9, metavar="F", help="inside the SLO (default: 90%%)"
    )
    group.add_argument("--from", type=typed(parse_positive), default=1.0, metavar="R", help="first rate (default: 1)")
    group.add_argument("--to", type=typed(parse_positive), default=1024.0, metavar="R", help="highest (default: 1024)")
    group.add_argument(
        "--precision", type=typed(parse_fraction), default=0.05, metavar="F", help="of the rate (default: 5%%)"
    )
    parser.set_defaults(duration=parse_duration_s("15s"))
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="trials as JSON (default: loadtest-sweep-DATE-TIME.json)"
    )
    parser.add_argument("--quiet", action="store_true", help="no progress on standard error")
    return parser
