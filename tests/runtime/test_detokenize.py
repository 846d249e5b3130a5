from collections.abc import Callable
from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.detokenize import MAX_HELD_TOKENS, ByteDetokenizer
from runtime.tokens import Tokenizer
from tests.runtime.tiny_tokenizer import END, TURN_END, metaspace_tokenizer, tiny_tokenizer

byte_level = cache(tiny_tokenizer)
metaspace = cache(metaspace_tokenizer)


def pieces_of(tokenizer: Tokenizer, tokens: list[int]) -> list[str]:
    detokenizer = tokenizer.detokenizer()
    return [*(detokenizer.push(token) for token in tokens), detokenizer.flush()]


@given(st.lists(st.integers(0, 330), max_size=40))
def test_pieces_of_random_tokens_join_to_decode(tokens: list[int]) -> None:
    assert "".join(pieces_of(byte_level(), tokens)) == byte_level().decode(tokens)


@given(st.text(max_size=40))
def test_pieces_of_any_text_join_to_that_text(text: str) -> None:
    tokens = byte_level().encode(text)
    assert "".join(pieces_of(byte_level(), tokens)) == byte_level().decode(tokens)


@given(st.lists(st.sampled_from(["😀", "é", "日", "a", " ", "👩‍🚀"]), max_size=12))
def test_no_piece_shows_a_part_of_a_character(parts: list[str]) -> None:
    tokens = byte_level().encode("".join(parts))
    assert not any("\ufffd" in piece for piece in pieces_of(byte_level(), tokens))


def test_an_emoji_is_released_with_its_last_byte() -> None:
    tokens = byte_level().encode("😀")
    assert len(tokens) == 4
    assert pieces_of(byte_level(), tokens) == ["", "", "", "😀", ""]


def test_an_incomplete_character_is_released_by_flush() -> None:
    tokens = byte_level().encode("a😀")[:-1]
    assert pieces_of(byte_level(), tokens) == ["a", "", "", "", "\ufffd"]


def test_special_tokens_give_no_text() -> None:
    tokenizer = byte_level()
    tokens = tokenizer.encode(f"a{TURN_END}<think>b")
    assert "".join(pieces_of(tokenizer, tokens)) == "a<think>b"


@pytest.mark.parametrize("make", [byte_level, metaspace])
@given(tokens=st.lists(st.integers(0, 330), max_size=30), shown=st.sets(st.integers(0, 330)), skip=st.booleans())
def test_pieces_join_to_decode_whatever_is_skipped(
    make: Callable[[], Tokenizer], tokens: list[int], shown: set[int], skip: bool
) -> None:
    tokenizer = make()
    tokens = tokens if tokenizer is byte_level() else [token for token in tokens if token > 257]  # whole characters
    detokenizer = tokenizer.detokenizer(skip_special_tokens=skip, shown_ids=tuple(shown))
    pieces = [*(detokenizer.push(token) for token in tokens), detokenizer.flush()]
    assert "".join(pieces) == tokenizer.decode(tokens, skip_special_tokens=skip, shown_ids=tuple(shown))
    hidden = tokenizer.special_ids - shown if skip else set()
    backend = tokenizer._backend.decode([t for t in tokens if t not in hidden], skip_special_tokens=False)
    assert "".join(pieces) == backend


def test_special_tokens_are_shown_where_they_are_wanted() -> None:
    tokenizer = byte_level()
    tokens = tokenizer.encode(f"a{TURN_END}b{END}")
    turn_end, end = tokens[1], tokens[3]
    assert tokenizer.decode(tokens) == "ab"
    assert tokenizer.decode(tokens, skip_special_tokens=False) == f"a{TURN_END}b{END}"
    assert tokenizer.decode(tokens, shown_ids=(turn_end,)) == f"a{TURN_END}b"
    assert tokenizer.decode(tokens, shown_ids=(turn_end, end)) == f"a{TURN_END}b{END}"


def test_ids_without_a_token_give_no_text() -> None:
    assert pieces_of(byte_level(), [10_000]) == ["", ""]


@given(st.text(alphabet="abc! é日😀hello world", max_size=30))
def test_a_windowed_decoder_agrees_with_decode(text: str) -> None:
    tokens = metaspace().encode(text)
    assert "".join(pieces_of(metaspace(), tokens)) == metaspace().decode(tokens)


@given(st.lists(st.sampled_from([1, 258, 259, 260, 261, 262, 263, 264, 265]), max_size=30))
def test_a_windowed_decoder_keeps_spaces_between_random_tokens(tokens: list[int]) -> None:
    assert "".join(pieces_of(metaspace(), tokens)) == metaspace().decode(tokens)


@given(st.integers(1, 12), st.lists(st.sampled_from([258, 259, 260, 261, 262, 263, 264, 265]), min_size=1, max_size=30))
def test_a_text_goes_on_behind_its_context(cut: int, tokens: list[int]) -> None:
    """Independent of how the text was cut: prompt and answer are what the library makes of all tokens."""
    prompt, answer = tokens[:cut], tokens[cut:]
    detokenizer = metaspace().detokenizer(context=prompt)
    pieces = [*(detokenizer.push(token) for token in answer), detokenizer.flush()]
    backend = metaspace()._backend
    assert backend.decode(prompt) + "".join(pieces) == backend.decode(tokens)


def test_the_first_word_of_an_answer_keeps_its_space() -> None:
    tokenizer = metaspace()
    hello, world = 258, 259
    assert pieces_of(tokenizer, [world]) == ["world", ""]
    detokenizer = tokenizer.detokenizer(context=[1, hello, 1])  # special tokens give no context
    assert detokenizer.push(world) == " world"


def test_a_context_that_ends_in_the_midst_of_a_character_is_none() -> None:
    emoji = [2 + byte for byte in "😀".encode()]
    detokenizer = metaspace().detokenizer(context=emoji[:2])
    assert "".join([*(detokenizer.push(token) for token in [*emoji[2:], 260]), detokenizer.flush()]).endswith(" a")


def test_a_windowed_decoder_does_not_hold_broken_bytes_for_ever() -> None:
    detokenizer = metaspace().detokenizer()
    released = [detokenizer.push(2 + 0xFF) for _ in range(10 * MAX_HELD_TOKENS)]
    assert len("".join(released)) >= 9 * MAX_HELD_TOKENS


def test_a_windowed_decoder_looks_at_few_tokens() -> None:
    seen: list[int] = []
    tokenizer = metaspace()
    decode = tokenizer.decode

    def counting(tokens: list[int]) -> str:
        seen.append(len(tokens))
        return decode(tokens)

    from runtime.detokenize import WindowDetokenizer

    detokenizer = WindowDetokenizer(counting, tokenizer.special_ids)
    for token in tokenizer.encode("hello world" * 50) + [2 + 0xFF] * 100:
        detokenizer.push(token)
    assert max(seen) <= 2 * MAX_HELD_TOKENS


def test_byte_pieces_are_asked_for_once_per_token() -> None:
    asked: list[int] = []

    def piece(token: int) -> bytes:
        asked.append(token)
        return b"x"

    detokenizer = ByteDetokenizer(piece, frozenset({7}))
    assert [detokenizer.push(token) for token in (1, 7, 2)] == ["x", "", "x"]
    assert asked == [1, 2]
