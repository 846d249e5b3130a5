import jax.numpy as jnp
import numpy as np
import pytest

from runtime.engine import PageWrite, PrefillSegment
from runtime.step_inputs import StepLayout, pack_masks, pack_sample, scored_spans

LAYOUT = StepLayout(num_tokens=8, num_decode=4, num_segments=3, num_hidden=4, table_width=5, sentinel_row=6)
SEGMENTS = (
    PrefillSegment(tokens=(7, 8, 9), start=4, pages=(2, 3)),
    PrefillSegment(tokens=(1, 2), start=0, pages=(5,), score=2, next_token=3),
)


def _unpacked(packed: np.ndarray, layout: StepLayout = LAYOUT) -> dict[str, list[object]]:
    return {name: np.asarray(field).tolist() for name, field in layout.unpack(jnp.asarray(packed)).items()}


def test_unpacking_gives_back_what_was_packed() -> None:
    packed = LAYOUT.pack(SEGMENTS, (3, 1), (PageWrite(1, 2, 9),), want_logprobs=True, deferred=True)
    assert packed.shape == (LAYOUT.size,)
    fields = _unpacked(packed)
    deltas = np.asarray(fields.pop("deltas"))
    assert fields == {
        "want_logprobs": [1],
        "is_deferred": [1],
        "rows": [3, 1, 6, 6],
        "tokens": [7, 8, 9, 1, 2, 0, 0, 0],
        "starts": [4, 0, 0],
        "cu_q_lens": [0, 3, 5, 5],
        "tables": [[2, 3, 0, 0, 0], [5, 0, 0, 0, 0], [0, 0, 0, 0, 0]],
        "next_tokens": [0, 3, 0],
        "score_span": [3, 5],
    }
    assert deltas[:, 0].tolist() == [1, 2, 9]
    assert (deltas[:, 1:] == np.array([[6], [0], [0]])).all()


def test_a_layout_has_no_fields_for_what_it_lacks() -> None:
    decode = StepLayout(num_tokens=0, num_decode=4, num_segments=3, num_hidden=4, table_width=5, sentinel_row=6)
    assert set(_unpacked(decode.pack(decode=(2,)), decode)) == {"want_logprobs", "is_deferred", "deltas", "rows"}
    prefill = StepLayout(num_tokens=8, num_decode=0, num_segments=3, num_hidden=4, table_width=5, sentinel_row=6)
    assert "rows" not in _unpacked(prefill.pack(SEGMENTS), prefill)


def test_samples_are_padded_with_the_sentinel_row() -> None:
    assert pack_sample([(1, 4), (2, 3)], 4, 6, True).tolist() == [[1, 1, 2, 0, 0], [0, 4, 3, 6, 6], [0] * 5]
    assert pack_sample([(1, 4), (2, 3)], 4, 6, False, (False, True)).tolist()[2] == [0, 0, 1, 0, 0]


def test_masks_are_words_of_little_endian_bytes() -> None:
    masks = [b"\x01\x02\x00\x80" + b"\xff\x00\x00\x00", None]
    assert pack_masks(masks, 3, 2).tolist() == [[0x80000201, 0xFF], [0, 0], [0, 0]]
    with pytest.raises(ValueError, match="mask 1 has 4 bytes; allowed: 8"):
        pack_masks([None, b"\x00" * 4], 2, 2)


def test_of_a_prompts_last_token_nothing_is_scored() -> None:
    ends = PrefillSegment(tokens=(4, 5, 6), start=0, pages=(2,), score=0)
    goes_on = PrefillSegment(tokens=(4, 5), start=0, pages=(2,), score=0, next_token=6)
    plain = PrefillSegment(tokens=(4, 5), start=0, pages=(2,))
    spans = [(start, end) for _, start, end in scored_spans((plain, ends, plain, goes_on))]
    assert spans == [(2, 4), (7, 9)]
    alone = PrefillSegment(tokens=(4,), start=3, pages=(2,), score=0)
    assert [(start, end) for _, start, end in scored_spans((alone,))] == [(0, 0)]
