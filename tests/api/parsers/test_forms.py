"""Every form, whole and broken, cut at every position, into single characters and at random."""

import json
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.parsers.deepseek import DeepSeekParser
from api.parsers.hermes import HermesParser
from api.parsers.llama3 import Llama3Parser
from api.parsers.mistral import MistralParser
from api.parsers.parts import CallBegan, Content, ContentParser, OutputParser
from api.parsers.reasoning import ReasoningParser
from tests.api.parsers.outputs import MakeParser, found, ids, run

ARGS = '{"city": "Paris, \\"France\\" }{", "days": [1, {"a": null}]}'
DS, DSE = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
D, S, E = "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>"


def hermes() -> OutputParser:
    return HermesParser(ids())


def llama3() -> OutputParser:
    return Llama3Parser(ids(), {"f", "g"})


def mistral() -> OutputParser:
    return MistralParser(ids())


def deepseek() -> OutputParser:
    return DeepSeekParser(ids())


def thinking() -> OutputParser:
    return ReasoningParser(HermesParser(ids()), begins_inside=False)


def thinking_inside() -> OutputParser:
    return ReasoningParser(HermesParser(ids()), begins_inside=True)


def v3(name: str, args: str) -> str:
    return f"{D}function{S}{name}\n```json\n{args}\n```{E}"


CASES: list[tuple[MakeParser, str, list[Any]]] = [
    (ContentParser, "<tool_call> any\n", ["<tool_call> any\n"]),
    # Hermes
    (hermes, "No call here < at all. \n", ["No call here < at all. \n"]),
    (hermes, f'<tool_call>\n{{"name": "f", "arguments": {ARGS}}}\n</tool_call>', [("f", ARGS)]),
    (hermes, f'<tool_call>{{"arguments":{ARGS},"name":"f"}}</tool_call>', [("f", ARGS)]),
    (hermes, f'<tool_call>{{"name":"f","parameters":{ARGS}}}', [("f", ARGS)]),
    (
        hermes,
        'I look. \n<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>\n<tool_call>\n{"name": "g.h", '
        '"arguments": {"a":1}}\n</tool_call>\n Done. ',
        ["I look.", ("f", "{}"), ("g.h", '{"a":1}'), "Done. "],
    ),
    (hermes, '<tool_call>{"name": "f"}</tool_call>', [("f", "{}")]),
    (hermes, '<tool_call>{"name": "f", "arguments": null}</tool_call>', [("f", "{}")]),
    (hermes, '<tool_call>{"name": "f", "arguments": "{\\"a\\": 1}"}</tool_call>', [("f", '{"a": 1}')]),
    (hermes, '<tool_call>{"name": "f", "arguments": [1, 2]}</tool_call>', [("f", "[1, 2]")]),
    (hermes, '<tool_call>{"id": 7, "type": "x", "name": "f", "arguments": {}, "b": [{}]}', [("f", "{}")]),
    (hermes, '<tool_call>{"name": "f", "arguments": {"a": [1,', [("f", '{"a": [1,')]),
    (hermes, '<tool_call>{"name": "f", "arg', ['<tool_call>{"name": "f", "arg']),
    (hermes, '<tool_call>{"name": 5, "arguments": {}}', ['<tool_call>{"name": 5, "arguments": {}}']),
    (hermes, '<tool_call>{"name": "a b", "arguments": {}}', ['<tool_call>{"name": "a b", "arguments": {}}']),
    (hermes, 'a \n<tool_call> {"nam \n', ['a \n<tool_call> {"nam \n']),
    (
        hermes,
        'see <tool_call> <tool_call>{"name": "f", "arguments": {}}</tool_call>',
        ["see <tool_call>", ("f", "{}")],
    ),
    (hermes, '<tool_call>{"name": "f", "arguments": {}} and more</tool_call>', [("f", "{}"), "and more</tool_call>"]),
    (hermes, '<tool_call>{"name": "f", "arguments": {}} oops, {"x": 1}', [("f", "{}"), 'oops, {"x": 1}']),
    (hermes, "<tool_call><tool_call", ["<tool_call><tool_call"]),
    # Llama 3
    (llama3, f'{{"name": "f", "parameters": {ARGS}}}', [("f", ARGS)]),
    (llama3, f'<|python_tag|>{{"name": "f", "parameters": {ARGS}}}', [("f", ARGS)]),
    (
        llama3,
        '{"name": "f", "parameters": {"a": ";"}}; {"type": "function", "name": "g", "parameters": {}}\n',
        [("f", '{"a": ";"}'), ("g", "{}")],
    ),
    (llama3, '{"name": "Bob", "parameters": {}}', ['{"name": "Bob", "parameters": {}}']),
    (llama3, ' {"age": 3, "size": {"x": 1}} ', [' {"age": 3, "size": {"x": 1}} ']),
    (llama3, "Plain; text", ["Plain; text"]),
    (
        llama3,
        'Look: <|python_tag|>{"name": "f", "arguments": {}}; x = 1',
        ["Look:", ("f", "{}"), "; x = 1"],
    ),
    (llama3, "<|python_tag|>print(1)", ["<|python_tag|>print(1)"]),
    (llama3, '{"name": "f", "parameters": {}} {"name": "g"}', [("f", "{}"), ' {"name": "g"}']),
    # Mistral
    (
        mistral,
        f'[TOOL_CALLS] [{{"name": "f", "arguments": {ARGS}}}, {{"name": "g", "arguments": {{}}, "id": "abcdefghi"}}]',
        [("f", ARGS), ("g", "{}")],
    ),
    (mistral, f"Hm.[TOOL_CALLS]f[ARGS]{ARGS}[TOOL_CALLS]g[CALL_ID]123456789[ARGS]{{}}",
     ["Hm.", ("f", ARGS), ("g", "{}")]),
    (mistral, f"[TOOL_CALLS]f{ARGS}", [("f", ARGS)]),
    (mistral, '[TOOL_CALLS]{"name": "f", "arguments": {}} \n', [("f", "{}")]),
    (mistral, "[TOOL_CALLS]", ["[TOOL_CALLS]"]),
    (mistral, "[TOOL_CALLS] no, [TOOL_CALLS", ["[TOOL_CALLS] no, [TOOL_CALLS"]),
    (mistral, "[TOOL_CALLS]" + "n" * 200 + "[ARGS]{}", ["[TOOL_CALLS]" + "n" * 200 + "[ARGS]{}"]),
    (mistral, '[TOOL_CALLS][{"name": "f", "arguments": {}}, 7]', [("f", "{}"), ", 7]"]),
    (mistral, "[TOOL_CALLS][ 1]", ["[TOOL_CALLS][ 1]"]),
    # DeepSeek
    (deepseek, f"I look.\n\n{DS}{v3('f', ARGS)}\n{v3('g', '{}')}{DSE}", ["I look.", ("f", ARGS), ("g", "{}")]),
    (deepseek, f"{DS}{D}f{S}{ARGS}{E}{D}g{S}{{}}{E}{DSE}", [("f", ARGS), ("g", "{}")]),
    (deepseek, f"{D}f{S}{{}}{E} Done", [("f", "{}"), "Done"]),
    (deepseek, f"{DS} a {D}f{S}{{", [f"{DS} a", ("f", "{")]),
    (deepseek, f"{DS}{D}function{S}f\nprint", [f"{DS}{D}function{S}f\nprint"]),
    (deepseek, f"x {DS}{D}" + "n" * 300, [f"x {DS}{D}" + "n" * 300]),
    # Reasoning
    (thinking, "<think>\nHm, a < b.\n</think>\n\nIt is 5. ", [("think", "Hm, a < b."), "It is 5. "]),
    (thinking, " It <think> is", [" It <think> is"]),
    (thinking, "<think>\n</think>\n5", ["5"]),
    (thinking, "<think>on and on </thin", [("think", "on and on </thin")]),
    (
        thinking,
        '<think>\nI call <tool_call>{"name": "f"}.</think>\n\n<tool_call>{"name": "f", "arguments": {}}</tool_call>',
        [("think", 'I call <tool_call>{"name": "f"}.'), ("f", "{}")],
    ),
    (thinking_inside, "Hm.\n</think>\n5</think>", [("think", "Hm."), "5</think>"]),
    (thinking_inside, "\n<think>\nHm.</think>5", [("think", "Hm."), "5"]),
    (thinking_inside, "never closed \n", [("think", "never closed \n")]),
]  # fmt: skip


@pytest.mark.parametrize(("make", "text", "expected"), CASES)
def test_the_parts_do_not_depend_on_the_cuts(make: MakeParser, text: str, expected: list[Any]) -> None:
    assert found(run(make, [text])) == expected
    for at in range(len(text) + 1):
        assert found(run(make, [text[:at], text[at:]])) == expected
    assert found(run(make, text)) == expected
    draw = random.Random(len(text))
    for _ in range(20):
        cuts = sorted(draw.choices(range(len(text) + 1), k=4))
        pieces = [text[begin:end] for begin, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
        assert found(run(make, pieces)) == expected


ALPHABET = st.sampled_from(
    ["<tool_call>", "</tool_call>", "<|python_tag|>", "[TOOL_CALLS]", "[ARGS]", "[CALL_ID]", "[", "]", ",", ":", "; ",
     DS, DSE, D, S, E, "function", "\n```json\n", "\n```", '{"name": "f", "arguments": ', '"name"', '"f"', '"', "f",
     "{", "}", "{}", "\\", "<think>", "</think>", " ", "\n", "null", "x", "<", "é"]
)  # fmt: skip


@pytest.mark.parametrize("make", [hermes, llama3, mistral, deepseek, thinking, thinking_inside])
@given(pieces=st.lists(ALPHABET, max_size=14), seed=st.integers(0, 1000))
def test_any_text_gives_the_same_parts_in_any_pieces(make: MakeParser, pieces: list[str], seed: int) -> None:
    text = "".join(pieces)
    whole = run(make, [text])
    assert found(run(make, text)) == found(whole)
    draw = random.Random(seed)
    cuts = sorted(draw.choices(range(len(text) + 1), k=3))
    assert found(
        run(make, [text[begin:end] for begin, end in zip([0, *cuts], [*cuts, len(text)], strict=True)])
    ) == found(whole)


@pytest.mark.parametrize("make", [hermes, llama3, mistral, deepseek])
@given(pieces=st.lists(ALPHABET, max_size=10))
def test_without_a_call_no_character_is_lost(make: MakeParser, pieces: list[str]) -> None:
    text = "".join(pieces)
    parts = run(make, text)
    if not any(isinstance(part, CallBegan) for part in parts):
        assert "".join(part.text for part in parts if isinstance(part, Content)) == text


def test_arguments_come_as_they_are_written() -> None:
    parser = hermes()
    parser.push('<tool_call>{"name": "f", "arguments": ')
    assert found(parser.push('{"a"')) == [("f", '{"a"')]
    piece = parser.push(': "b')
    assert [part.text for part in piece] == [': "b']  # type: ignore[union-attr]
    assert json.loads("".join(['{"a"', ': "b', '"}'])) == {"a": "b"}


def test_a_name_comes_only_when_it_is_whole() -> None:
    parser = hermes()
    assert parser.push('<tool_call>{"name": "get_wea') == []
    assert parser.push('ther", "arguments"') == []
    assert parser.push(": ") == []
    assert found(parser.push("{")) == [("get_weather", "{")]


def test_whether_the_text_is_reasoning_is_known_at_once() -> None:
    parser = ReasoningParser(ContentParser(), begins_inside=False)
    states = []
    for piece in ("<thi", "nk>", "a", "</think>", "b"):
        parser.push(piece)
        states.append(parser.is_reasoning)
    assert states == [None, True, True, False, False]
