"""The runs of a comparison, one after another: every load goes to all servers before the next, in changing order."""

from collections.abc import Callable, Sequence

from loadtest.comparison import CompareRun, Slos, Step, run_of, turns
from loadtest.datasets import Dataset
from loadtest.driver import Phase, Plan
from loadtest.metrics import measure
from loadtest.record import Record
from loadtest.recovery import recover
from loadtest.session import Bench, Load, Session, all_failed
from loadtest.settings import LoadSettings
from loadtest.validity import lag_limit_s, why_invalid

IDLE_FACTOR = 1.2
"""A lone request may take so many times what it took before the first load."""


class Alternation:
    """Of servers that all take from one data set. What is asked of them between runs is of a data set of its own.

    So the measured prompts are the same whenever the flags are, however long a server takes to recover.
    """

    def __init__(
        self,
        benches: dict[str, Bench],
        settings: LoadSettings,
        slos: Slos,
        on_run: Callable[[CompareRun], None],
        dead: Callable[[], dict[str, str]] = dict,
    ) -> None:
        """`on_run` is called after each run. `dead` tells which servers have ended, and how."""
        self._benches, self._settings, self._slos = benches, settings, slos
        self._on_run, self._dead = on_run, dead
        self._lone = Dataset(settings.data, settings.shape(), f"{settings.seed} lone")
        self._lone_s = dict[str, float]()
        self.runs = list[CompareRun]()
        self.failure: str | None = None

    async def run(self, session: Session, rates: Sequence[float], rounds: int) -> None:
        """All rounds, unless a signal or a dead server ends them."""
        async with session:
            await self._warm_up(session)
            for round_ in range(rounds):
                for index, rate in enumerate(rates):
                    name, seed = f"round {round_ + 1} of {rounds}", self._settings.seed + round_
                    order = turns(list(self._benches), round_, index)
                    steps = [Step(server=server, rate=rate, round=round_, seed=seed) for server in order]
                    if not await self._run_load(session, steps, name):
                        # With another seed and other prompts: a server may have cached these by now.
                        again = [
                            Step(server=server, rate=rate, round=round_, seed=seed + rounds) for server in order[::-1]
                        ]
                        await self._run_load(session, again, f"{name}, again")

    async def _warm_up(self, session: Session) -> None:
        """And measures how fast a lone request is."""
        warmup, lone = next(iter(self._benches.values())).take_warmup(), self._lone_load()
        for name, bench in self._benches.items():
            phase = await session.run(bench.prepare(warmup), f"warm-up, {name}")
            if (reason := all_failed(phase) or phase.stopped) is not None:
                self._fail(name, reason)
                return
            alone = await session.run(bench.prepare(lone), f"lone request, {name}")
            self._lone_s[name] = max((_took_s(record) for record in alone.records), default=0.0)

    async def _run_load(self, session: Session, steps: Sequence[Step], name: str) -> bool:
        """The same requests to every server in turn. False when a run is invalid, and it is worth trying again."""
        if self._is_over(session):
            return True
        load = next(iter(self._benches.values())).take(steps[0].rate, seed=steps[0].seed)
        made = list[CompareRun]()
        for step in steps:
            if self._is_over(session):
                return True
            made.append(await self._run(session, step, load, name))
        return all(run.invalid is None for run in made)

    async def _run(self, session: Session, step: Step, load: Load, name: str) -> CompareRun:
        bench = self._benches[step.server]
        phase = await session.run(bench.prepare(load), f"{name}, {step.rate:g} requests/s, {step.server}")
        dead = self._dead()
        stopped = phase.stopped or dead.get(step.server)
        made = run_of(step, phase.records, self._slos, self._why_invalid(phase), stopped)
        self.runs.append(made)
        self._on_run(made)
        if stopped is not None or dead:
            self._fail(step.server, stopped or next(iter(dead.values())))
        else:
            limit_s = self._lone_s[step.server] * IDLE_FACTOR
            await recover(
                session, lambda: bench.prepare(self._lone_load()), lambda record: 0 < _took_s(record) <= limit_s
            )
        return made

    def _why_invalid(self, phase: Phase) -> str | None:
        """A server that answered nothing is not the client's fault."""
        metrics = measure(phase.records)
        limit_s = lag_limit_s(metrics, self._settings.max_lag)
        return why_invalid(metrics, phase.tick_lags_s, limit_s) if metrics.completed else None

    def _lone_load(self) -> Load:
        return Load(tuple(self._lone.warmup(1)), Plan())

    def _fail(self, name: str, reason: str) -> None:
        """A signal is no failure."""
        if reason != "interrupted":
            self.failure = next(iter(self._dead().values()), f"{name}: {reason}")

    def _is_over(self, session: Session) -> bool:
        return self.failure is not None or session.exit_code is not None


def _took_s(record: Record) -> float:
    return record.ended_s - record.scheduled_s if record.outcome == "ok" else 0.0
