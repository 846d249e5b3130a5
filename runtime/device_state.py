"""The rows' state on the device: page tables, lengths, last tokens and the sampler's rows.

One entry per row and one more for the sentinel row, which padding points at: its table holds page 0 alone and its
length is 0. Every program that changes the state takes it donated and returns it.

Writing rows: what every row needs travels as one int32 matrix (floats as their bits), what is as wide as the
vocabulary as arrays of their own, so that rows that do not use them can share zeros that are on the device already.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from runtime.engine import RowState
from runtime.sampler import SamplerRows, empty_rows
from runtime.sampler_rows import row_values
from runtime.sampling_params import SamplingParams

WIDE_FIELDS = ("mask", "prompt_mask", "counts")
"""Fields of `SamplerRows` that are as wide as the vocabulary."""

_NO_SAMPLING = SamplingParams(seed=0, max_tokens=1, temperature=0.0)


class DeviceRows(NamedTuple):
    """State of R rows, the sentinel being the last; W page-table columns."""

    tables: jax.Array  # int32[R, W]
    lengths: jax.Array  # int32[R], tokens that have KV
    last_tokens: jax.Array  # int32[R], fed by the next decode step
    sampler: SamplerRows

    @property
    def sentinel(self) -> int:
        """The row that padding points at."""
        return self.lengths.shape[0] - 1


def empty_device_rows(num_rows: int, table_width: int, vocab_size: int) -> DeviceRows:
    """Rows 0..num_rows-1 and the sentinel, all empty and greedy."""
    return DeviceRows(
        tables=jnp.zeros((num_rows + 1, table_width), jnp.int32),
        lengths=jnp.zeros(num_rows + 1, jnp.int32),
        last_tokens=jnp.zeros(num_rows + 1, jnp.int32),
        sampler=empty_rows(num_rows + 1, vocab_size),
    )


class RowWriter:
    """Packs row values on the host and writes them on the device, for one table width and vocabulary."""

    def __init__(self, num_rows: int, table_width: int, vocab_size: int) -> None:
        self._sentinel = num_rows
        self._table_width = table_width
        self._vocab_size = vocab_size
        sampler = jax.eval_shape(lambda: empty_rows(1, vocab_size))
        fields = {"row": ((), np.int32), "length": ((), np.int32), "last_token": ((), np.int32)}
        narrow = {name: (x.shape[1:], x.dtype) for name, x in sampler._asdict().items() if name not in WIDE_FIELDS}
        self._fields = {**fields, "table": ((table_width,), np.int32), **narrow}
        self._wide = {name: sampler._asdict()[name] for name in WIDE_FIELDS}
        self._padding = self._pack_values(num_rows, 0, 0, (), row_values(_NO_SAMPLING, 0, (), (), vocab_size)._asdict())

    @property
    def packed_size(self) -> int:
        """Words of one row in the packed matrix."""
        return sum(int(np.prod(shape)) for shape, _ in self._fields.values())

    def wide_zeros(self, num_rows: int) -> dict[str, np.ndarray]:
        """The wide fields of rows that use none of them."""
        return {name: np.zeros((num_rows, *x.shape[1:]), x.dtype) for name, x in self._wide.items()}

    def pack(self, rows: Sequence[RowState], bucket: int) -> np.ndarray:
        """int32[bucket, packed_size]; rows beyond the given ones write the sentinel row again as it is."""
        packed = np.tile(self._padding, (bucket, 1))
        for index, row in enumerate(rows):
            values = row_values(row.sampling, row.choice, (), (), self._vocab_size, mask=row.mask)._asdict()
            values["index"] = np.int32(len(row.output))
            packed[index] = self._pack_values(row.row, row.length, row.last_token, row.pages, values)
        return packed

    def wide(self, row: RowState) -> dict[str, np.ndarray] | None:
        """The wide fields of one row (leading axis 1), None if the row uses none of them."""
        if not (row.sampling.has_penalties or row.sampling.allowed_mask is not None or row.mask is not None):
            return None
        values = row_values(row.sampling, row.choice, row.prompt, row.output, self._vocab_size, mask=row.mask)._asdict()
        return {name: np.asarray(values[name])[None] for name in WIDE_FIELDS}

    def write(self, state: DeviceRows, packed: jax.Array, wide: Mapping[str, jax.Array]) -> DeviceRows:
        """Sets the packed rows; traced. Every field of a written row is replaced."""
        fields = self._unpack(packed)
        rows = fields.pop("row")
        lengths, last_tokens, tables = fields.pop("length"), fields.pop("last_token"), fields.pop("table")
        values = {**fields, **wide}
        old = state.sampler._asdict()
        sampler = {name: x.at[rows].set(values[name], mode="promise_in_bounds") for name, x in old.items()}
        return DeviceRows(
            tables=state.tables.at[rows].set(tables, mode="promise_in_bounds"),
            lengths=state.lengths.at[rows].set(lengths, mode="promise_in_bounds"),
            last_tokens=state.last_tokens.at[rows].set(last_tokens, mode="promise_in_bounds"),
            sampler=SamplerRows(**sampler),
        )

    def _pack_values(
        self, row: int, length: int, last_token: int, pages: Sequence[int], values: Mapping[str, Any]
    ) -> np.ndarray:
        table = np.zeros(self._table_width, np.int32)
        table[: len(pages)] = pages
        values = {**values, "row": row, "length": length, "last_token": last_token, "table": table}
        words = [_to_words(np.asarray(values[name], dtype)) for name, (_, dtype) in self._fields.items()]
        return np.concatenate(words)

    def _unpack(self, packed: jax.Array) -> dict[str, jax.Array]:
        fields, offset = {}, 0
        for name, (shape, dtype) in self._fields.items():
            size = int(np.prod(shape))
            words = packed[:, offset : offset + size].reshape(packed.shape[0], *shape)
            is_bool = dtype == np.bool_
            fields[name] = words != 0 if is_bool else jax.lax.bitcast_convert_type(words, dtype)
            offset += size
        return fields


def _to_words(values: np.ndarray) -> np.ndarray:
    """Values of four bytes as their bits, booleans as 0 and 1; int32, flat."""
    flat = values.reshape(-1)
    return flat.astype(np.int32) if flat.dtype == np.bool_ else flat.view(np.int32)
