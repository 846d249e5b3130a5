"""Chunks that change on their way are noticed, sent again and never read; without checksums they would be."""

from collections.abc import Callable
from random import Random

import msgspec
import pytest

from runtime.engine import KvChunk
from tests.simulation import system
from tests.simulation.fake_engine import FakeChunk, FakeMover
from tests.simulation.harness import SimulationFailure, run_workload
from tests.simulation.test_simulation import traffic, workload
from tests.simulation.timing_watch import TimingWatch
from tests.simulation.workload import Workload

SHARE = 0.3
TOPOLOGIES = ("prefill=1,decode=1", "prefill=2,decode=2")


class Corruption:
    """Changes a share of the chunks that a mover moves, in one token of their first page."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
        self.changed = 0
        self._random = Random(f"corruption {seed}")
        self._move = FakeMover.move
        monkeypatch.setattr(FakeMover, "move", lambda mover, chunk, target: self._corrupted(mover, chunk, target))

    def _corrupted(self, mover: FakeMover, chunk: KvChunk, target: str) -> KvChunk:
        moved = self._move(mover, chunk, target)
        assert isinstance(moved, FakeChunk)
        assert moved.contents is not None
        slot = moved.contents[0][0]
        if slot is not None and self._random.random() < SHARE:
            self.changed += 1
            moved.contents[0][0] = msgspec.structs.replace(slot, prefix=slot.prefix ^ 1)
        return moved


def _inexact(now: Callable[[], float]) -> TimingWatch:
    """A chunk that is sent again arrives later than the watch believes."""
    watch = TimingWatch(now)
    watch.exact = False
    return watch


def verified(topology: str, seed: int) -> Workload:
    """Six requests on a system that checks its chunks."""
    return msgspec.structs.replace(workload(topology, traffic(0.02), seed), verify_kv=True)


@pytest.mark.parametrize("topology", TOPOLOGIES)
@pytest.mark.parametrize("seed", range(3))
def test_changed_chunks_are_sent_again(topology: str, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(system, "TimingWatch", _inexact)
    corruption = Corruption(monkeypatch, seed)
    outcome = run_workload(verified(topology, seed))
    assert outcome.completed == 6
    assert corruption.changed > 0
    assert outcome.messages["ChunkCorrupt"] == corruption.changed


def test_with_nothing_changed_nothing_is_sent_twice() -> None:
    outcome = run_workload(verified("prefill=2,decode=2", 0))
    assert outcome.completed == 6
    assert "ChunkCorrupt" not in outcome.messages
    assert "ChunkLost" not in outcome.messages


def test_without_checksums_the_simulator_sees_wrong_kv(monkeypatch: pytest.MonkeyPatch) -> None:
    Corruption(monkeypatch, 0)
    with pytest.raises(SimulationFailure, match="KvViolation"):
        _run_seeds(5)


def _run_seeds(count: int) -> None:
    for seed in range(count):
        run_workload(workload("prefill=2,decode=2", traffic(0.02), seed))
