"""The host's side of a step: what it tells the device, packed into one int32 vector, and its unpacking there.

One vector means one transfer per step. `StepLayout` fixes the order and the sizes for one pair of buckets; both sides
read it, so they cannot disagree. A layout without prefill tokens (or decode rows) has no such fields at all.
"""

from collections.abc import Mapping, Sequence

import jax
import msgspec
import numpy as np

from runtime.engine import SENTINEL_PAGE, PageWrite, PrefillSegment, as_int32

DELTAS_PER_ROW = 4
PREFILL_DELTAS = 64


class StepLayout(msgspec.Struct, frozen=True, kw_only=True):
    """Sizes of one step program: T prefill tokens of at most R segments, B decode rows, W table columns.

    `num_hidden` is how many hidden states it hands to a sampling program, at least R and B.
    """

    num_tokens: int
    num_decode: int
    num_segments: int
    num_hidden: int
    table_width: int
    sentinel_row: int

    @property
    def num_deltas(self) -> int:
        """Page-table deltas that one step carries."""
        return max(self.num_decode * DELTAS_PER_ROW, PREFILL_DELTAS)

    @property
    def fields(self) -> dict[str, tuple[int, ...]]:
        """Field names and shapes in the order of packing."""
        fields: dict[str, tuple[int, ...]] = {"want_logprobs": (1,), "deltas": (3, self.num_deltas)}
        if self.num_decode:
            fields["is_deferred"] = (1,)
            fields["rows"] = (self.num_decode,)
        if self.num_tokens:
            fields["tokens"] = (self.num_tokens,)
            fields["starts"] = (self.num_segments,)
            fields["cu_q_lens"] = (self.num_segments + 1,)
            fields["tables"] = (self.num_segments, self.table_width)
            fields["next_tokens"] = (self.num_segments,)
            fields["score_span"] = (2,)
        return fields

    @property
    def size(self) -> int:
        """Length of the packed vector."""
        return sum(int(np.prod(shape)) for shape in self.fields.values())

    def pack(
        self,
        prefill: Sequence[PrefillSegment] = (),
        decode: Sequence[int] = (),
        deltas: Sequence[PageWrite] = (),
        want_logprobs: bool = False,
        deferred: bool = False,
    ) -> np.ndarray:
        """The vector of one step, int32[size]. What is not used points at the sentinel row or page."""
        packed = np.zeros(self.size, np.int32)
        views = _split(packed, self.fields)
        views["want_logprobs"][0] = want_logprobs
        views["deltas"][0] = self.sentinel_row
        views["deltas"][2] = SENTINEL_PAGE
        if deltas:
            views["deltas"][:, : len(deltas)] = np.array([(d.row, d.column, d.page) for d in deltas]).T
        if self.num_decode:
            views["is_deferred"][0] = deferred
            views["rows"][:] = self.sentinel_row
            views["rows"][: len(decode)] = decode
        if self.num_tokens:
            _pack_prefill(views, prefill)
        return packed

    def unpack(self, packed: jax.Array) -> dict[str, jax.Array]:
        """The fields by name, on the device."""
        fields, offset = {}, 0
        for name, shape in self.fields.items():
            size = int(np.prod(shape))
            fields[name] = packed[offset : offset + size].reshape(shape)
            offset += size
        return fields


def pack_sample(
    pairs: Sequence[tuple[int, int]],
    bucket: int,
    sentinel_row: int,
    want_logprobs: bool,
    is_given: Sequence[bool] = (),
) -> np.ndarray:
    """What `sample_step` takes, int32[3, bucket + 1]: the flag and zeros, then places over rows over whose mask counts.

    `is_given` says so for each pair, or is empty where all rows have their own.
    """
    packed = np.zeros((3, bucket + 1), np.int32)
    packed[0, 0] = want_logprobs
    packed[1, 1:] = sentinel_row
    packed[:2, 1 : len(pairs) + 1] = np.array(pairs, np.int32).reshape(-1, 2).T
    packed[2, 1 : len(is_given) + 1] = is_given
    return packed


def pack_masks(masks: Sequence[bytes | None], bucket: int, num_words: int) -> np.ndarray:
    """uint32[bucket, num_words] of packed bit masks, zeros where there is none.

    Raises ValueError for one of another length.
    """
    packed = np.zeros((bucket, num_words), np.uint32)
    for index, mask in enumerate(masks):
        if mask is None:
            continue
        if len(mask) != 4 * num_words:
            raise ValueError(f"mask {index} has {len(mask)} bytes; allowed: {4 * num_words}")
        packed[index] = np.frombuffer(mask, "<u4")
    return packed


def _split(packed: np.ndarray, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    views, offset = {}, 0
    for name, shape in shapes.items():
        size = int(np.prod(shape))
        views[name] = packed[offset : offset + size].reshape(shape)
        offset += size
    return views


def _pack_prefill(views: Mapping[str, np.ndarray], prefill: Sequence[PrefillSegment]) -> None:
    end = 0
    for index, segment in enumerate(prefill):
        start, end = end, end + len(segment.tokens)
        views["tokens"][start:end] = as_int32(segment.tokens)
        views["starts"][index] = segment.start
        views["cu_q_lens"][index + 1] = end
        views["tables"][index, : len(segment.pages)] = segment.pages
        views["next_tokens"][index] = segment.next_token or 0
    views["cu_q_lens"][len(prefill) + 1 :] = end
    spans = [(start, end) for segment, start, end in scored_spans(prefill)]
    views["score_span"][:] = (spans[0][0], spans[-1][1]) if spans else 0


def scored_spans(prefill: Sequence[PrefillSegment]) -> list[tuple[PrefillSegment, int, int]]:
    """The segments to score, with the step's tokens behind which they want logprobs: the first and one past the last.

    A prompt's last token has none behind it.
    """
    spans, start = [], 0
    for segment in prefill:
        end = start + len(segment.tokens)
        if segment.score is not None:
            spans.append((segment, start, end - (segment.next_token is None)))
        start = end
    return spans
