"""The demo tokenizer: any text round-trips, digits stand alone, the marker tokens survive decoding."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from runtime.demo import MODEL_DIR
from runtime.demo.phrasing import REASONING_SUFFIX
from runtime.demo.tokenizer import MARKER_TOKENS, SPECIAL_TOKENS, VOCAB_SIZE

TOKENIZER = Tokenizer.from_file(str(MODEL_DIR / "tokenizer.json"))


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.text(alphabet=st.characters(exclude_categories=("Cs",)), max_size=80))
def test_any_text_round_trips(text: str) -> None:
    assert TOKENIZER.decode(TOKENIZER.encode(text).ids, skip_special_tokens=False) == text


@pytest.mark.parametrize("text", ["", " ", "  a\n\n\tb  ", "12 × 7 ÷ 3 − 1", "日本語 😀 é", "\r\n\x00", "don't  stop"])
def test_awkward_texts_round_trip(text: str) -> None:
    assert TOKENIZER.decode(TOKENIZER.encode(text).ids, skip_special_tokens=False) == text


def test_every_digit_is_a_token_of_its_own() -> None:
    assert TOKENIZER.encode("1234567890").tokens == list("1234567890")
    assert all(sum(c.isdigit() for c in token) <= 1 for token in TOKENIZER.get_vocab())


def test_special_tokens_vanish_and_marker_tokens_stay() -> None:
    for token in SPECIAL_TOKENS + MARKER_TOKENS:
        ids = TOKENIZER.encode(token).ids
        assert len(ids) == 1
        assert TOKENIZER.decode(ids, skip_special_tokens=True) == ("" if token in SPECIAL_TOKENS else token)


def test_vocabulary_size_and_compression() -> None:
    assert TOKENIZER.get_vocab_size() == VOCAB_SIZE
    assert len(TOKENIZER.encode(REASONING_SUFFIX).ids) <= 24


def test_transformers_reads_the_same_tokenizer() -> None:
    tokenizer = AutoTokenizer.from_pretrained(MODEL_DIR)
    text = "<|im_start|>user\nWhat is 37 + 58?<|im_end|>\n<|im_start|>assistant\n<think>\n"
    assert tokenizer(text)["input_ids"] == TOKENIZER.encode(text).ids
    assert tokenizer.eos_token == "<|im_end|>"
    assert tokenizer.pad_token == "<|endoftext|>"
