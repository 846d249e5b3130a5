"""An operator who empties the prefix caches again and again while requests share prefixes: nobody notices."""

from typing import Any

import pytest

from actors.context import Context
from actors.messages import Address, ForgetPrefixes, PrefixesForgotten
from actors.wiring import CLIENT_CAPACITY
from tests.simulation import harness
from tests.simulation.harness import run_workload
from tests.simulation.system import SimSystem
from tests.simulation.workload import draw_shared_workload

TIMES = 500
EVERY_S = 0.05


class Emptier:
    """Asks every worker, waits for all answers, and counts the pages."""

    address = Address("client/emptier")

    def __init__(self, workers: list[Address]) -> None:
        self._workers = workers
        self.answers = 0
        self.pages = 0

    async def run(self, ctx: Context) -> None:
        for _ in range(TIMES):
            await ctx.sleep(EVERY_S)
            for worker in self._workers:
                await ctx.send(worker, ForgetPrefixes(reply_to=ctx.address))
            for _ in self._workers:
                answer = await ctx.receive()
                assert isinstance(answer, PrefixesForgotten)
                self.answers += 1
                self.pages += answer.num_pages


@pytest.fixture
def emptiers(monkeypatch: pytest.MonkeyPatch) -> list[Emptier]:
    """The operators of the runs that a test makes."""
    made = list[Emptier]()

    class Emptied(SimSystem):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            emptier = Emptier([Address(name) for name in self.engines])
            self.carrier.start(emptier.address, emptier.run, CLIENT_CAPACITY)
            made.append(emptier)

    monkeypatch.setattr(harness, "SimSystem", Emptied)
    return made


@pytest.mark.parametrize("topology", ["prefill=2,decode=2", "mixed=2"])
def test_requests_get_their_answers_while_caches_are_emptied(topology: str, emptiers: list[Emptier]) -> None:
    load = draw_shared_workload(3, 300, topology)
    outcome = run_workload(load)
    (emptier,) = emptiers
    assert emptier.answers > 100
    assert emptier.pages > 100
    assert outcome.completed > 200
