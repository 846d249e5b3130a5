from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.stop_strings import StopScanner


def scan(stop: tuple[str, ...], parts: list[str]) -> tuple[str, str | None]:
    scanner = StopScanner(stop)
    released = ""
    for part in parts:
        text, match = scanner.push(part)
        released += text
        if match is not None:
            return released, match
    return released + scanner.flush(), None


def cuts(text: str) -> list[list[str]]:
    """Every way of cutting the text in up to three parts, and character by character."""
    ways = [[text], list(text)]
    for first, second in combinations(range(len(text) + 1), 2):
        ways.append([text[:first], text[first:second], text[second:]])
    return ways


@pytest.mark.parametrize(
    ("stop", "text", "expected"),
    [
        (("END",), "hello END more", ("hello ", "END")),
        (("END",), "hello EN", ("hello EN", None)),
        (("aab",), "aaaab tail", ("aa", "aab")),
        (("abab",), "abaabab", ("aba", "abab")),
        (("\n\n", "\n\nQ"), "A\n\nQ", ("A", "\n\n")),
        (("xyz", "yz"), "wxyz!", ("w", "xyz")),
        (("abcd", "bc"), "abcd", ("a", "bc")),
        (("😀",), "hi😀x", ("hi", "😀")),
        ((), "anything", ("anything", None)),
    ],
)
def test_every_split_gives_the_same_answer(stop: tuple[str, ...], text: str, expected: tuple[str, str | None]) -> None:
    assert {scan(stop, parts) for parts in cuts(text)} == {expected}


def earliest_end(stop: tuple[str, ...], text: str) -> tuple[str, str | None]:
    """The rule, spelled out: the match that ends first, the longest of those."""
    for end in range(len(text) + 1):
        matches = [word for word in stop if text[:end].endswith(word)]
        if matches:
            longest = max(matches, key=len)
            return text[: end - len(longest)], longest
    return text, None


@given(
    st.lists(st.text(alphabet="ab", min_size=1, max_size=4), min_size=1, max_size=3).map(tuple),
    st.lists(st.text(alphabet="abc", max_size=4), max_size=8),
)
def test_random_texts_follow_the_rule(stop: tuple[str, ...], parts: list[str]) -> None:
    assert scan(stop, parts) == earliest_end(stop, "".join(parts))


def test_text_is_held_only_while_it_may_begin_a_stop_string() -> None:
    scanner = StopScanner(("STOP",))
    assert scanner.push("abcST") == ("abc", None)
    assert scanner.push("x") == ("STx", None)


def test_after_a_match_nothing_is_released() -> None:
    scanner = StopScanner(("!",))
    assert scanner.push("a!b") == ("a", "!")
    assert scanner.push("c") == ("", "!")
    assert scanner.flush() == ""


def test_an_empty_stop_string_is_refused() -> None:
    with pytest.raises(ValueError, match="must not be empty"):
        StopScanner(("a", ""))
