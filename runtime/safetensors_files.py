"""The safetensors files of a model folder, memory-mapped: names, shapes and views of tensors, nothing copied.

Format: 8 bytes of little-endian header length, a JSON header with each tensor's dtype, shape and byte range,
then the data. Files are checked when they are opened, before anything of them is used: a truncated download,
a missing shard or one that cannot be read is a CheckpointError of one line.
"""

import contextlib
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import msgspec
import numpy as np

from runtime.errors import CheckpointError
from runtime.model_folder import read_json

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
MAX_HEADER_BYTES = 100_000_000
DTYPES: dict[str, np.dtype[Any]] = {
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}


class StoredTensor(msgspec.Struct, frozen=True, kw_only=True):
    """Where one tensor lies: `num_bytes` from byte `offset` of `file`, in row-major order."""

    file: Path
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    offset: int

    @property
    def num_bytes(self) -> int:
        """Bytes in the file."""
        return math.prod(self.shape) * self.dtype.itemsize

    def view(self) -> np.ndarray:
        """The tensor as a read-only view of its mapped byte range; nothing is read yet.

        Raises CheckpointError if the file can no longer be mapped.
        """
        if self.num_bytes == 0:
            return np.zeros(self.shape, self.dtype)
        with _told(self.file):
            raw = np.memmap(self.file, np.uint8, "r", offset=self.offset, shape=(self.num_bytes,))
        return raw.view(self.dtype).reshape(self.shape)

    def read_into(self, out: np.ndarray, first_row: int = 0) -> None:
        """Fills the contiguous `out`, of the tensor's type, with its rows from `first_row` on.

        Several times faster than copying out of the mapped file, which takes a page fault for every few pages. Raises
        CheckpointError if the file cannot be read or has become shorter.
        """
        rest = out.reshape(-1).view(np.uint8).data
        with _told(self.file), self.file.open("rb", buffering=0) as stream:
            stream.seek(self.offset + first_row * math.prod(self.shape[1:]) * self.dtype.itemsize)
            while len(rest):
                count = stream.readinto(rest)
                if not count:
                    raise CheckpointError(f"{self.file} has become shorter while it was read")
                rest = rest[count:]


def open_checkpoint(folder: Path) -> dict[str, StoredTensor]:
    """Every tensor of the folder's model.safetensors, or else of the files that its index names.

    Raises:
        UsageError: the folder or the index is missing or the index is not JSON.
        CheckpointError: no weights, a missing shard, a file that cannot be read, a truncated one, a bad header or an
            unsupported type.
    """
    tensors: dict[str, StoredTensor] = {}
    with _told(folder):
        files = _files(folder)
    for file in files:
        for name, tensor in read_header(file).items():
            if name in tensors:
                raise CheckpointError(f"{file}: tensor {name} is also in {tensors[name].file.name}")
            tensors[name] = tensor
    return tensors


def read_header(file: Path) -> dict[str, StoredTensor]:
    """The tensors of one file.

    Raises CheckpointError if the file cannot be read, is truncated or is not a safetensors file.
    """
    with _told(file), file.open("rb") as stream:
        file_bytes = file.stat().st_size
        prefix = stream.read(8)
        header_bytes = int.from_bytes(prefix, "little")
        if len(prefix) == 8 and header_bytes > MAX_HEADER_BYTES:
            raise CheckpointError(f"{file} is not a safetensors file: its header claims {header_bytes} bytes")
        if len(prefix) < 8 or 8 + header_bytes > file_bytes:
            raise CheckpointError(f"{file} is truncated: it ends within its header, at {file_bytes} bytes")
        header = _parse_header(file, stream.read(header_bytes))
    tensors = {name: _stored(file, 8 + header_bytes, name, entry) for name, entry in header.items()}
    end = max((tensor.offset + tensor.num_bytes for tensor in tensors.values()), default=0)
    if end > file_bytes:
        raise CheckpointError(f"{file} is truncated: its tensors need {end} bytes, it has {file_bytes}")
    return tensors


@contextlib.contextmanager
def _told(path: Path) -> Iterator[None]:
    """What the operating system refuses, as a CheckpointError of one line."""
    try:
        yield
    except OSError as error:
        raise CheckpointError(f"{error.filename or path} cannot be read: {error.strerror or error}") from None


def _files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise CheckpointError(f"model folder {folder} does not exist or is not a folder")
    if (folder / SINGLE_FILE).exists():
        return [folder / SINGLE_FILE]
    if not (folder / INDEX_FILE).exists():
        raise CheckpointError(f"model folder {folder} has neither {SINGLE_FILE} nor {INDEX_FILE}")
    weight_map = read_json(folder / INDEX_FILE).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{folder / INDEX_FILE}: weight_map must map tensor names to files")
    names = sorted({str(name) for name in weight_map.values()})
    missing = [name for name in names if Path(name).name != name or not (folder / name).is_file()]
    if missing:
        raise CheckpointError(f"model folder {folder} lacks {', '.join(missing)}, which {INDEX_FILE} names")
    return [folder / name for name in names]


def _parse_header(file: Path, raw: bytes) -> dict[str, Any]:
    try:
        header = json.loads(raw)
    except ValueError:
        raise CheckpointError(f"{file} is not a safetensors file: its header is not JSON") from None
    if not isinstance(header, dict):
        raise CheckpointError(f"{file} is not a safetensors file: its header is not a JSON object")
    header.pop("__metadata__", None)
    return header


def _stored(file: Path, data_start: int, name: str, entry: Any) -> StoredTensor:
    try:
        kind, shape, (begin, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
        is_sound = all(isinstance(size, int) and size >= 0 for size in (*shape, begin, end))
    except (KeyError, TypeError, ValueError):
        is_sound = False
    if not is_sound:
        raise CheckpointError(f"{file}: the header's entry for {name} is malformed")
    if kind not in DTYPES:
        raise CheckpointError(f"{file}: {name} is stored as {kind}; supported: {', '.join(DTYPES)}")
    tensor = StoredTensor(file=file, dtype=DTYPES[kind], shape=shape, offset=data_start + begin)
    if tensor.num_bytes != end - begin:
        raise CheckpointError(
            f"{file}: {name} is {kind}{list(shape)}, {tensor.num_bytes} bytes, but its byte range has {end - begin}"
        )
    return tensor
