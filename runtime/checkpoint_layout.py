"""Where each parameter lies in a checkpoint: in a tensor of its own name, in one per expert, or in a fused one.

Used once per start by `weights`. All experts of a layer are one parameter here. Checkpoints hold one tensor per expert
and projection, as published and as transformers writes them unless told otherwise, or what transformers 5 computes
with: `experts.gate_up_proj [E, 2F, D]`, gate first, and `experts.down_proj [E, D, F]`.
"""

import math
from collections.abc import Mapping

import msgspec
import numpy as np
from numpy.typing import DTypeLike

from runtime.host_memory import cast_into, own_pages
from runtime.safetensors_files import StoredTensor

Shape = tuple[int, ...]
Part = tuple[slice, ...]
"""An index into a parameter, a slice per axis."""

EXPERTS = ".mlp.experts."


class Piece(msgspec.Struct, frozen=True):
    """A stored tensor, the shape that it must have, and which of its rows (on axis 1) are meant; None for all."""

    name: str
    shape: Shape
    rows: tuple[int, int] | None = None

    def view(self, stored: Mapping[str, StoredTensor]) -> np.ndarray:
        """These rows of the mapped file; nothing is read yet."""
        tensor = stored[self.name].view()
        return tensor if self.rows is None else tensor[:, self.rows[0] : self.rows[1]]

    def read(self, stored: Mapping[str, StoredTensor], part: Part, out: np.ndarray) -> None:
        """Copies a part into `out`: in one piece where it is one piece of the file, and of the same type."""
        tensor = stored[self.name]
        is_whole_rows = self.rows is None and all(
            len(_range(index, size)) == size for index, size in zip(part[1:], self.shape[1:], strict=True)
        )
        if is_whole_rows and out.dtype == tensor.dtype and out.flags.c_contiguous:
            tensor.read_into(out, _range(part[0], self.shape[0]).start)
        else:
            cast_into(out, self.view(stored)[part])


class Source(msgspec.Struct, frozen=True):
    """What a parameter of `shape` is made of: one piece, or as many as its first axis is long."""

    shape: Shape
    pieces: tuple[Piece, ...]

    def num_bytes(self, stored: Mapping[str, StoredTensor]) -> int:
        """Bytes of the files that the parameter takes."""
        return math.prod(self.shape) * stored[self.pieces[0].name].dtype.itemsize

    def read(self, stored: Mapping[str, StoredTensor], dtype: DTypeLike, part: Part | None = None) -> np.ndarray:
        """The parameter, or the part that `part` indexes, as `dtype` in memory of its own. Holds no more than that."""
        part = (slice(None),) * len(self.shape) if part is None else part
        out = own_pages([len(_range(index, size)) for index, size in zip(part, self.shape, strict=True)], dtype)
        if len(self.pieces[0].shape) == len(self.shape):
            self.pieces[0].read(stored, part, out)
            return out
        for slot, piece in zip(out, self.pieces[part[0]], strict=True):
            piece.read(stored, part[1:], slot)
        return out


def _range(index: slice, size: int) -> range:
    return range(*index.indices(size))


def find_source(name: str, shape: Shape, stored: Mapping[str, StoredTensor]) -> Source:
    """Where parameter `name` is to be found; its pieces need not be there."""
    block, separator, tail = name.partition(EXPERTS)
    if not separator:
        return Source(shape, (Piece(name, shape),))
    prefix, projection = block + separator, tail.removesuffix(".weight")
    num_experts, num_rows, num_columns = shape
    if prefix + "gate_up_proj" in stored or prefix + "down_proj" in stored:
        if projection == "down_proj":
            return Source(shape, (Piece(prefix + projection, shape),))
        start = 0 if projection == "gate_proj" else num_rows
        fused = (num_experts, 2 * num_rows, num_columns)
        return Source(shape, (Piece(prefix + "gate_up_proj", fused, (start, start + num_rows)),))
    one = (num_rows, num_columns)
    return Source(shape, tuple(Piece(f"{prefix}{expert}.{tail}", one) for expert in range(num_experts)))
