import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding

from runtime.engine import KvChunk, KvMover, Step
from runtime.jax_engine import JaxEngine
from runtime.kv_mover import DevicePutMover
from runtime.placement import Placement
from tests.runtime.engines import Runner, assert_greedy, make_engine, prompt_of, row_state, segment


class HostMover:
    """The planted violation: a mover that goes through a numpy array."""

    def __init__(self, shardings: dict[str, NamedSharding]) -> None:
        self._shardings = shardings

    def move(self, chunk: KvChunk, target: str) -> KvChunk:
        assert isinstance(chunk, jax.Array)
        return KvChunk(jax.device_put(jax.device_get(chunk), self._shardings[target]))


@pytest.fixture
def host_reads(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Shapes of the arrays that went to the host, as they happen."""
    from jax._src.array import ArrayImpl

    reads: list[tuple[int, ...]] = []
    original = ArrayImpl._value

    def counted(array: jax.Array) -> np.ndarray:
        reads.append(array.shape)
        return original.fget(array)

    monkeypatch.setattr(ArrayImpl, "_value", property(counted))
    return reads


@pytest.fixture(scope="module")
def engines() -> tuple[JaxEngine, JaxEngine]:
    return make_engine("prefill", 1), make_engine("decode", 2)


def _hand_over(source: JaxEngine, target: JaxEngine, mover: KvMover) -> None:
    prompt = prompt_of(90)
    pages, target_pages = tuple(range(20, 34)), tuple(range(40, 26, -1))
    source.set_rows([row_state(0, prompt, pages)])
    source.dispatch(Step(prefill=(segment(prompt, pages, 0, 60),)))
    chunks = [(source.gather(pages[:7]), range(7))]
    handle = source.dispatch(Step(prefill=(segment(prompt, pages, 60, rows=(0,)),)))
    chunks.append((source.gather(pages[7:12]), range(7, 12)))
    first = source.fetch(handle)[0].token
    for chunk, columns in chunks:
        moved = mover.move(chunk, "decode.0")
        target.insert(moved, range(len(columns)), [target_pages[column] for column in columns])
    target.set_rows([row_state(3, prompt, target_pages, output=(first,))])
    runner = Runner(target)
    for _ in range(9):
        runner.run(decode=(3,))
    assert_greedy(prompt, [first, *runner.tokens(3)])


def _kv_reads(reads: list[tuple[int, ...]]) -> list[tuple[int, ...]]:
    return [shape for shape in reads if len(shape) >= 5]


def test_moved_pages_continue_as_if_they_had_stayed(
    engines: tuple[JaxEngine, JaxEngine], host_reads: list[tuple[int, ...]]
) -> None:
    source, target = engines
    shardings = {"prefill.0": source.placement.chunk, "decode.0": target.placement.chunk}
    _hand_over(source, target, DevicePutMover(shardings))
    assert _kv_reads(host_reads) == []
    _hand_over(source, target, HostMover(shardings))
    assert len(_kv_reads(host_reads)) == 2


def test_a_move_leaves_its_source_alone_and_reads_nothing(
    engines: tuple[JaxEngine, JaxEngine], host_reads: list[tuple[int, ...]]
) -> None:
    source, target = engines
    prompt = prompt_of(10)
    source.fetch(source.dispatch(Step(prefill=(segment(prompt, (1, 2)),))))
    chunk = source.gather((1, 2))
    moved = DevicePutMover({"decode.0": target.placement.chunk}).move(chunk, "decode.0")
    assert host_reads == []
    assert isinstance(chunk, jax.Array)
    assert isinstance(moved, jax.Array)
    assert moved.devices() == set(target.placement.devices)
    assert not chunk.is_deleted()
    np.testing.assert_array_equal(chunk, moved)


def test_slices_of_unequal_width_are_refused() -> None:
    devices = jax.devices()
    shardings = {"prefill.0": Placement(devices[:1]).chunk, "decode.0": Placement(devices[1:3]).chunk}
    with pytest.raises(ValueError, match="equally many devices"):
        DevicePutMover(shardings)
