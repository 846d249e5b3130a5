"""Token masks as rows of little-endian uint32 words: bit v%32 of word v//32 is token v."""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

Words = NDArray[np.uint32]
"""`uint32[W]`, W the words of the model's vocabulary."""


def num_words(vocab_size: int) -> int:
    """Words that hold a bit for each token."""
    return -(-vocab_size // 32)


def pack(tokens: Iterable[int], vocab_size: int) -> Words:
    """A mask with the bits of `tokens`; ids outside the vocabulary have none."""
    bits = np.zeros(num_words(vocab_size) * 32, dtype=np.uint8)
    bits[[token for token in tokens if 0 <= token < vocab_size]] = 1
    return np.packbits(bits, bitorder="little").view("<u4").astype(np.uint32)


def unpacked(mask: bytes, vocab_size: int) -> Words:
    """The words of packed bytes, brought to the vocabulary's length: what the bytes do not reach is excluded."""
    words = np.frombuffer(mask, dtype="<u4").astype(np.uint32)[: num_words(vocab_size)]
    return np.pad(words, (0, num_words(vocab_size) - len(words)))


def to_bytes(words: Words) -> bytes:
    """Words as the engine takes them."""
    return words.astype("<u4", copy=False).tobytes()


def has(words: Words, token: int) -> bool:
    """Whether a token's bit is set; ids outside are not."""
    return 0 <= token < len(words) * 32 and bool(words[token // 32] >> np.uint32(token % 32) & np.uint32(1))
