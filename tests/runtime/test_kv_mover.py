import jax
import msgspec
import numpy as np
import pytest
from jax.sharding import NamedSharding

from runtime.compile_cache import compilations
from runtime.engine import KvChunk, KvMover, Step
from runtime.jax_engine import JaxEngine
from runtime.kv_heads import KvHeads
from runtime.kv_mover import DevicePutMover, chunk_heads_of
from runtime.model_config import ModelConfig
from runtime.placement import Placement
from tests.runtime.engines import MODEL, PAGE, Runner, assert_greedy, make_engine, prompt_of, row_state, segment


class HostMover:
    """The planted violation: a mover that goes through a numpy array."""

    def __init__(self, shardings: dict[str, NamedSharding]) -> None:
        self._shardings = shardings

    def move(self, chunk: KvChunk, target: str) -> KvChunk:
        return KvChunk(jax.device_put(jax.device_get(chunk), self._shardings[target]))


class WholeArrayMover(HostMover):
    """The planted violation between unequal TPs: whole arrays, put under the target's sharding."""

    def move(self, chunk: KvChunk, target: str) -> KvChunk:
        assert isinstance(chunk, tuple)
        whole = tuple(jax.device_put(array, self._shardings[target]) for array in chunk)
        return KvChunk(whole)


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
    assert isinstance(chunk, tuple)
    assert isinstance(moved, tuple)
    assert moved[0].devices() == set(target.placement.devices)
    assert not chunk[0].is_deleted()
    np.testing.assert_array_equal(chunk[0], moved[0])


def test_unequal_widths_need_the_number_of_heads() -> None:
    devices = jax.devices()
    shardings = {"prefill.0": Placement(devices[:1]).chunk, "decode.0": Placement(devices[1:3]).chunk}
    with pytest.raises(ValueError, match="equally many devices"):
        DevicePutMover(shardings)


EIGHT_HEADS = msgspec.structs.replace(MODEL, num_heads=8, num_kv_heads=8)


@pytest.mark.parametrize("model", [MODEL, EIGHT_HEADS], ids=["2 heads", "8 heads"])
@pytest.mark.parametrize(("source_tp", "target_tp"), [(1, 2), (1, 4), (2, 1), (2, 2), (2, 4), (4, 1), (4, 2)])
def test_pages_arrive_where_their_heads_belong(
    model: ModelConfig, source_tp: int, target_tp: int, host_reads: list[tuple[int, ...]]
) -> None:
    """Every head of every page, by way of a pool that holds random numbers, and nothing by way of the host."""
    source, target = Placement(jax.devices()[:source_tp]), Placement(jax.devices()[4 : 4 + target_tp])
    shardings = {"a": source.chunk, "b": target.chunk}
    mover = DevicePutMover(shardings, model.num_kv_heads)
    heads = chunk_heads_of(model.num_kv_heads, frozenset({source_tp, target_tp}))
    values = np.random.default_rng(1).standard_normal((2, 3, model.num_kv_heads, 2, PAGE, 16)).astype(np.float32)
    chunk, want = (_chunk(values, KvHeads(model.num_kv_heads, each.tp), heads) for each in (source, target))
    moved = mover.move(KvChunk(jax.device_put(chunk, source.chunk)), "b")
    assert isinstance(moved, tuple)
    assert host_reads == []
    assert [array.sharding for array in moved] == [target.chunk] * len(want)
    for array, expected in zip(moved, want, strict=True):
        np.testing.assert_array_equal(array, expected)


def _chunk(values: np.ndarray, layout: KvHeads, heads: int) -> tuple[np.ndarray, ...]:
    """What a slice of that layout gathers: for each local fragment, that of all devices side by side."""
    parts = []
    for fragment in range(layout.local // heads):
        firsts = [layout.first_on(device) + fragment * heads for device in range(layout.tp)]
        parts.append(np.concatenate([values[:, :, first : first + heads] for first in firsts], axis=2))
    return tuple(parts)


@pytest.mark.parametrize(("source_tp", "target_tp"), [(1, 2), (4, 1)])
def test_unequal_slices_continue_each_others_sequences(
    source_tp: int, target_tp: int, host_reads: list[tuple[int, ...]]
) -> None:
    widths = frozenset({source_tp, target_tp})
    heads = chunk_heads_of(MODEL.num_kv_heads, widths)
    source = make_engine("prefill", 0, tp=source_tp, chunk_heads=heads)
    target = make_engine("decode", 4, tp=target_tp, chunk_heads=heads)
    shardings = {"prefill.0": source.placement.chunk, "decode.0": target.placement.chunk}
    _hand_over(source, target, DevicePutMover(shardings, MODEL.num_kv_heads))
    assert _kv_reads(host_reads) == []


def test_a_whole_array_between_unequal_slices_would_be_seen(host_reads: list[tuple[int, ...]]) -> None:
    wide, narrow = Placement(jax.devices()[:4]), Placement(jax.devices()[4:6])
    chunk = jax.device_put((np.zeros((2, 3, 4, 2, PAGE, 16), np.float32),), wide.chunk)
    WholeArrayMover({"decode.0": narrow.chunk}).move(KvChunk(chunk), "decode.0")
    assert len(_kv_reads(host_reads)) == 1


def test_a_move_between_unequal_slices_compiles_nothing() -> None:
    wide, narrow = Placement(jax.devices()[:2]), Placement(jax.devices()[4:5])
    mover = DevicePutMover({"a": wide.chunk, "b": narrow.chunk}, 2)
    there = jax.device_put((np.ones((2, 3, 2, 2, PAGE, 16), np.float32),), wide.chunk)
    count = compilations.count
    back = mover.move(mover.move(KvChunk(there), "b"), "a")
    assert compilations.count == count
    assert isinstance(back, tuple)
    np.testing.assert_array_equal(back[0], there[0])
