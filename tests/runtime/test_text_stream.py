from functools import cache

from hypothesis import given
from hypothesis import strategies as st

from runtime.text_stream import TextOptions, TextStream
from tests.runtime.tiny_tokenizer import TURN_END, tiny_tokenizer

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


def pushed(stream: TextStream, tokens: list[int]) -> tuple[str, str | None]:
    """All that a stream releases up to its first match, which ends the text."""
    shown = ""
    for token in tokens:
        text, match = stream.push(token)
        shown += text
        if match is not None:
            return shown, match
    return shown + stream.finish(), None


def test_a_stop_string_may_belong_to_the_text() -> None:
    stream = TextStream(tokenizer(), TextOptions(stop=("is 9",), include_stop=True))
    assert pushed(stream, tokenizer().encode("The answer is 95.")) == ("The answer is 9", "is 9")
    assert stream.push(tokenizer().encode("a")[0]) == ("", "is 9")


def test_a_stop_token_has_text_only_where_it_is_included() -> None:
    (comma,) = tokenizer().encode(",")
    for include, expected in ((False, "Hello th"), (True, "Hello th,")):
        stream = TextStream(tokenizer(), TextOptions(stop=("there",), include_stop=include))
        shown = "".join(stream.push(token)[0] for token in tokenizer().encode("Hello th"))
        assert shown + stream.end(comma) == expected


def test_a_stop_token_comes_after_the_bytes_that_wait() -> None:
    stream = TextStream(tokenizer(), TextOptions(include_stop=True))
    assert [stream.push(token)[0] for token in tokenizer().encode("😀")[:3]] == ["", "", ""]
    assert stream.end(tokenizer().encode("😀")[3]) == "😀"


def test_a_special_stop_token_has_text_only_where_it_is_shown() -> None:
    (end,) = tokenizer().encode(TURN_END)
    for options, expected in (
        (TextOptions(include_stop=True), ""),
        (TextOptions(include_stop=True, skip_special_tokens=False), TURN_END),
        (TextOptions(include_stop=True, shown_ids=(end,)), TURN_END),
        (TextOptions(skip_special_tokens=False), ""),
    ):
        assert TextStream(tokenizer(), options).end(end) == expected


@given(
    st.text(alphabet="ab😀", max_size=20),
    st.lists(st.text(alphabet="ab😀", min_size=1, max_size=3), min_size=1, max_size=3),
)
def test_an_included_stop_string_is_what_ends_the_text(text: str, stop: list[str]) -> None:
    tokens = tokenizer().encode(text)
    without, match = pushed(TextStream(tokenizer(), TextOptions(stop=tuple(stop))), tokens)
    ended, same = pushed(TextStream(tokenizer(), TextOptions(stop=tuple(stop), include_stop=True)), tokens)
    assert same == match
    assert ended == without + (match or "")
    assert text.startswith(ended)


@given(st.lists(st.integers(0, 330), max_size=30))
def test_without_stop_strings_the_whole_text_comes_out(tokens: list[int]) -> None:
    stream = TextStream(tokenizer(), TextOptions(stop=("never in here \u2603",)))
    text = "".join(stream.push(token)[0] for token in tokens) + stream.finish()
    assert text == tokenizer().decode(tokens)
