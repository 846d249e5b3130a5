import pytest

from kernels.shapes import MODELS, Heads


def test_heads_are_shared_by_the_devices_of_a_slice() -> None:
    heads = Heads(num_layers=36, num_heads=32, num_kv_heads=8, head_dim=128)
    assert heads.group == 4
    assert heads.on_one_of(1) == heads
    assert heads.on_one_of(4) == Heads(36, 8, 2, 128)


def test_kv_heads_are_repeated_where_there_are_more_devices() -> None:
    assert Heads(28, 12, 2, 128).on_one_of(4) == Heads(28, 3, 1, 128)


@pytest.mark.parametrize(
    ("heads", "tp"), [(Heads(28, 12, 2, 128), 5), (Heads(28, 12, 4, 128), 3), (Heads(1, 12, 6, 64), 4)]
)
def test_heads_that_cannot_be_shared_are_refused(heads: Heads, tp: int) -> None:
    with pytest.raises(ValueError, match=f"{heads.num_heads} query heads and {heads.num_kv_heads} kv heads"):
        heads.on_one_of(tp)


def test_named_models_have_whole_groups_on_one_and_on_four_devices() -> None:
    for heads in MODELS.values():
        for tp in (1, 4):
            share = heads.on_one_of(tp)
            assert share.group * share.num_kv_heads == share.num_heads
