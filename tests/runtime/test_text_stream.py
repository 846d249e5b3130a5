from functools import cache

from hypothesis import given
from hypothesis import strategies as st

from runtime.text_stream import TextOptions, TextStream
from tests.runtime.tiny_tokenizer import tiny_tokenizer

tokenizer = cache(tiny_tokenizer)


def test_text_streams_token_by_token() -> None:
    tokens = tokenizer().encode("The answer is 95 😀.")
    stream = TextStream(tokenizer(), TextOptions())
    assert "".join(stream.push(token)[0] for token in tokens) + stream.finish() == "The answer is 95 😀."


def test_a_stop_string_across_tokens_is_never_shown() -> None:
    stream = TextStream(tokenizer(), TextOptions(stop=("is 9",)))
    shown, match = "", None
    for token in tokenizer().encode("The answer is 95."):
        text, match = stream.push(token)
        shown += text
        if match is not None:
            break
    assert (shown, match) == ("The answer ", "is 9")
    assert stream.push(tokenizer().encode("a")[0]) == ("", "is 9")
    assert stream.finish() == ""


def test_stop_strings_do_not_match_within_the_minimum() -> None:
    tokens = tokenizer().encode("a.b.c.")
    stream = TextStream(tokenizer(), TextOptions(stop=(".",), min_tokens=len(tokenizer().encode("a.b"))))
    pieces = [stream.push(token) for token in tokens]
    assert "".join(text for text, _ in pieces) == "a.b"
    assert [match for _, match in pieces].count(None) == len(tokenizer().encode("a.b"))


def test_finish_releases_a_stop_string_that_never_came() -> None:
    stream = TextStream(tokenizer(), TextOptions(stop=("is 97",)))
    shown = "".join(stream.push(token)[0] for token in tokenizer().encode("It is 9"))
    assert shown + stream.finish() == "It is 9"


def test_finish_releases_an_incomplete_character() -> None:
    stream = TextStream(tokenizer(), TextOptions())
    assert [stream.push(token)[0] for token in tokenizer().encode("😀")[:2]] == ["", ""]
    assert stream.finish() == "\ufffd"


@given(st.lists(st.integers(0, 330), max_size=30))
def test_without_stop_strings_the_whole_text_comes_out(tokens: list[int]) -> None:
    stream = TextStream(tokenizer(), TextOptions(stop=("never in here \u2603",)))
    text = "".join(stream.push(token)[0] for token in tokens) + stream.finish()
    assert text == tokenizer().decode(tokens)
