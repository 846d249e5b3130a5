"""Runs a parser over a text that is cut somehow, and tells what it found in a form that tests can write down."""

import itertools
from collections.abc import Callable, Iterable
from typing import Any

from api.parsers.parts import CallArguments, CallBegan, Content, OutputParser, Part, Reasoning

MakeParser = Callable[[], OutputParser]


def ids() -> Callable[[], str]:
    counter = itertools.count()
    return lambda: f"call-{next(counter)}"


def run(make: MakeParser, pieces: Iterable[str]) -> list[Part]:
    parser = make()
    return [*(part for piece in pieces for part in parser.push(piece)), *parser.finish()]


def found(parts: Iterable[Part]) -> list[Any]:
    """Runs of one kind joined: text as it is, reasoning as `("think", text)`, a call as `(name, arguments)`."""
    result: list[Any] = []
    for part in parts:
        match part:
            case Content(text):
                if result and isinstance(result[-1], str):
                    result[-1] += text
                else:
                    result.append(text)
            case Reasoning(text):
                if result and result[-1][0] == "think":
                    result[-1] = ("think", result[-1][1] + text)
                else:
                    result.append(("think", text))
            case CallBegan(index, call_id, name):
                assert call_id == f"call-{index}"
                assert index == sum(isinstance(entry, tuple) and entry[0] != "think" for entry in result)
                result.append((name, ""))
            case CallArguments(index, text):
                name, before = result[-1]
                assert index == sum(isinstance(entry, tuple) and entry[0] != "think" for entry in result) - 1
                result[-1] = (name, before + text)
    return result
