"""Recorded traffic in Mooncake's format: when requests came, how long they were and which blocks they shared.

A line has `timestamp` in milliseconds, `input_length`, `output_length` and `hash_ids`, one for each 512 tokens of the
prompt. Equal ids become equal blocks of drawn token ids, so that a server's prefix cache sees the recorded sharing.
"""

import random
from pathlib import Path

import msgspec

from loadtest.datasets.files import read_lines
from loadtest.datasets.shape import Shape
from loadtest.errors import UsageError
from loadtest.request import Request

BLOCK_TOKENS = 512


class _Line(msgspec.Struct, frozen=True):
    timestamp: float
    input_length: int
    output_length: int
    hash_ids: tuple[int, ...] = ()


def read_mooncake(path: Path, shape: Shape, seed: str) -> list[Request]:
    """One request a line, in the order of their timestamps. Lengths are the trace's own."""
    lines = sorted((_decode(place, line) for place, line in read_lines(path)), key=lambda line: line.timestamp)
    blocks = dict[int, tuple[int, ...]]()
    return [_request(index, line, blocks, shape, seed) for index, line in enumerate(lines)]


def _decode(place: str, text: bytes) -> _Line:
    try:
        line = msgspec.json.decode(text, type=_Line)
    except msgspec.DecodeError as error:
        raise UsageError(f"{place}: {error}") from None
    if line.input_length < 1 or line.output_length < 1:
        raise UsageError(f"{place}: input_length and output_length: allowed: 1 and above")
    return line


def _request(index: int, line: _Line, blocks: dict[int, tuple[int, ...]], shape: Shape, seed: str) -> Request:
    prompt = tuple[int, ...]()
    for block in line.hash_ids:
        if block not in blocks:
            blocks[block] = shape.draw_ids(random.Random(f"block {seed} {block}"), BLOCK_TOKENS)
        prompt += blocks[block]
    missing = line.input_length - len(prompt)
    if missing > 0:  # tokens behind the last whole block that the trace hashed belong to this request alone
        prompt += shape.draw_ids(random.Random(f"tail {seed} {index}"), missing)
    return Request(
        prompt=prompt[: line.input_length],
        prompt_tokens=line.input_length,
        max_tokens=line.output_length,
        at_s=line.timestamp / 1e3,
        exact_output=True,
    )
