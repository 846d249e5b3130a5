import numpy as np
import pytest

from runtime.sampler import empty_rows
from runtime.sampler_rows import row_values
from runtime.sampling_params import MAX_LOGIT_BIAS, MAX_STOP_IDS, SamplingParams


def params(**values: object) -> SamplingParams:
    return SamplingParams(**{"seed": 0, "max_tokens": 9, **values})


def test_a_row_has_the_shapes_and_types_of_the_device_state() -> None:
    state = empty_rows(3, 70)
    row = row_values(params(logit_bias=((1, 2.0),), stop_token_ids=(4,)), 2, [1], [2], 70)
    for name, leaf, value in zip(state._fields, state, row, strict=True):
        assert (leaf.shape[1:], leaf.dtype) == (value.shape, value.dtype), name


def test_recovered_output_gives_counts_and_index() -> None:
    row = row_values(params(), 3, [1, 33, 1], [2, 5, 2], 40)
    assert row.index == 3
    assert row.choice == 3
    assert {token: int(row.counts[token]) for token in np.flatnonzero(row.counts)} == {2: 2, 5: 1}
    assert row.prompt_mask.tolist() == [1 << 1, 1 << 1]


@pytest.mark.parametrize(
    ("seed", "halves"),
    [(5, [5, 0]), (2**32 + 5, [5, 1]), (2**64 - 1, [2**32 - 1] * 2), (-1, [2**32 - 1] * 2)],
)
def test_both_halves_of_the_seed(seed: int, halves: list[int]) -> None:
    assert row_values(params(seed=seed), 0, [], [], 8).seed.tolist() == halves


def test_values_that_mean_off() -> None:
    row = row_values(params(top_k=8, temperature=1e-44, min_tokens=2**40), 0, [], [], 8)
    assert row.top_k == 0
    assert row.temperature == 0
    assert row.min_tokens == 2**31 - 1
    assert not row.use_mask


def test_bias_stop_ids_and_mask_are_packed() -> None:
    mask = np.array([6, 1], "<u4").tobytes()
    row = row_values(params(logit_bias=((7, -1.5),), stop_token_ids=(3, 4), allowed_mask=mask), 0, [], [], 33)
    assert row.bias_ids[:2].tolist() == [7, -1]
    assert row.bias_values[:2].tolist() == [-1.5, 0]
    assert row.stop_ids[:3].tolist() == [3, 4, -1]
    assert row.mask.tolist() == [6, 1]
    assert row.use_mask


@pytest.mark.parametrize(
    ("values", "prompt", "message"),
    [
        ({"logit_bias": ((8, 1.0),)}, [], "logit_bias has token id 8; allowed are 0 to 7"),
        ({"logit_bias": ((0, 1.0),) * (MAX_LOGIT_BIAS + 1)}, [], "logit_bias has 301 entries; at most 300"),
        ({"stop_token_ids": (-1,)}, [], "stop_token_ids has token id -1"),
        ({"stop_token_ids": (1,) * (MAX_STOP_IDS + 1)}, [], "stop_token_ids has 33 entries"),
        ({"allowed_mask": b"\0"}, [], "allowed_mask has 1 bytes; 8 tokens take 4"),
        ({}, [8], "prompt has token id 8"),
    ],
)
def test_what_does_not_fit_is_refused(values: dict[str, object], prompt: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        row_values(params(**values), 0, prompt, [], 8)
