"""Forced calls, for all forms: what a grammar lets through is found by the form's parser and fits the schema.

In place of a model, allowed tokens are drawn at random, in a hurry to end what is open.
"""

import json
import random
from functools import cache
from typing import Any

import jsonschema
import numpy as np
import pytest
from tokenizers import AddedToken
from transformers import PreTrainedTokenizerFast

from api.model import ServedModel
from api.parsers.forms import TOOL_FORMS
from api.tools import plan_tools
from api.tools_grammar import tools_grammar
from runtime.constraints.grammars import Grammars
from runtime.tokens import Tokenizer
from tests.api.parsers.outputs import found, ids
from tests.runtime.tiny_tokenizer import TURN_END, byte_level_backend

TEXT = {"type": "string", "maxLength": 8}
NUMBER = {"type": "integer", "minimum": -99, "maximum": 99}
SCHEMAS: list[dict[str, Any]] = [
    {"properties": {"city": TEXT}, "required": ["city"]},
    {"properties": {"city": TEXT, "days": NUMBER}, "required": ["city", "days"]},
    {"properties": {"unit": {"enum": ["C", "F"]}}, "required": ["unit"]},
    {"properties": {"on": {"type": "boolean"}, "off": {"type": "null"}}, "required": ["on", "off"]},
    {"properties": {"list": {"type": "array", "items": NUMBER, "minItems": 1, "maxItems": 3}}, "required": ["list"]},
    {"properties": {"x": {"anyOf": [NUMBER, {"type": "null"}]}}, "required": ["x"]},
    {"properties": {"in": {"type": "object", "properties": {"a": NUMBER}, "required": ["a"],
                           "additionalProperties": False}}, "required": ["in"]},
    {"properties": {"p": {"$ref": "#/$defs/P"}}, "required": ["p"],
     "$defs": {"P": {"type": "object", "properties": {"y": {"type": "boolean"}}, "required": ["y"],
                     "additionalProperties": False}}},
    {"properties": {"k": {"const": "fix \"ed\""}}, "required": ["k"]},
    {"properties": {}},
]  # fmt: skip


@cache
def tokenizer(form: str, template: str = "") -> Tokenizer:
    backend = byte_level_backend()
    markers = [marker for marker in TOOL_FORMS[form].markers if template != "old" or marker not in ("[ARGS]",)]
    backend.add_special_tokens([AddedToken(marker, special=True) for marker in markers])
    wrapped = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=TURN_END)
    wrapped.chat_template = template
    return Tokenizer(wrapped)


@cache
def grammars(form: str, template: str = "") -> Grammars:
    model = tokenizer(form, template)
    return Grammars(model, model.vocab_size, num_threads=1)


@cache
def served(form: str, template: str = "") -> ServedModel:
    model = tokenizer(form, template)
    return ServedModel(
        names=("tiny",), tokenizer=model, max_context_tokens=256, max_request_tokens=256, vocab_size=model.vocab_size,
        eos_token_ids=(), created=0, check_grammar=grammars(form, template).check,
    )  # fmt: skip


def tools(schemas: list[dict[str, Any]]) -> list[dict[str, Any]]:
    closed = [{"type": "object", "additionalProperties": False} | schema for schema in schemas]
    return [
        {"type": "function", "function": {"name": f"f-{index}", "parameters": schema}}
        for index, schema in enumerate(closed)
    ]


def drawn(compiled: Grammars, model: Tokenizer, grammar: str, draw: random.Random) -> str:
    """A text under the grammar. What ends strings, lists and objects is preferred."""
    matcher = compiled.begin(grammar)
    pieces: list[bytes] = []
    while not matcher.is_stopped() and len(pieces) < 2000:
        bits = np.unpackbits(compiled.masks([matcher])[0].view(np.uint8), bitorder="little")
        allowed = np.flatnonzero(bits)
        if compiled.vocab_size in allowed and draw.random() < 0.7:
            break
        allowed = allowed[allowed < compiled.vocab_size]
        ending = [int(token) for token in allowed if model.piece(int(token))[:1] in (b'"', b"}", b"]")]
        token = draw.choice(ending if ending and draw.random() < 0.5 else [int(token) for token in allowed])
        matcher.consume_token(token)
        assert not matcher.is_error()
        pieces.append(model.piece(token))
    return b"".join(pieces).decode(errors="replace")


LAYOUTS = [
    ("hermes", ""), ("llama3", ""), ("mistral", ""), ("mistral", "old"), ("deepseek", ""), ("deepseek", "```json")
]  # fmt: skip


@pytest.mark.parametrize(("form", "template"), LAYOUTS)
@pytest.mark.parametrize("many", [False, True])
def test_a_forced_answer_is_calls_that_fit_their_schemas(form: str, template: str, many: bool) -> None:
    model, offered, draw = tokenizer(form, template), tools(SCHEMAS), random.Random(7)
    plan = plan_tools(offered, "required", None, None, many)
    grammar = tools_grammar(plan, TOOL_FORMS[form], served(form, template))
    schemas = {tool["function"]["name"]: tool["function"]["parameters"] for tool in offered}
    counts = set()
    for _ in range(12):
        text = drawn(grammars(form, template), model, grammar, draw)
        parser = TOOL_FORMS[form].make_parser(ids(), frozenset(schemas))
        calls = found([*parser.push(text), *parser.finish()])
        assert all(isinstance(call, tuple) for call in calls), text
        counts.add(len(calls))
        for name, arguments in calls:
            jsonschema.validate(json.loads(arguments), schemas[name])
            assert not set("\n\t").intersection(arguments)
    assert min(counts) == 1
    assert (max(counts) > 1) == many


@pytest.mark.parametrize("index", range(len(SCHEMAS)))
def test_a_named_call_fits_its_schema(index: int) -> None:
    model, offered, draw = tokenizer("hermes"), tools(SCHEMAS), random.Random(index)
    choice = {"type": "function", "function": {"name": f"f-{index}"}}
    grammar = tools_grammar(plan_tools(offered, choice, None, None, None), TOOL_FORMS["hermes"], served("hermes"))
    for _ in range(3):
        parser = TOOL_FORMS["hermes"].make_parser(ids(), ())
        ((name, arguments),) = found(parser.push(drawn(grammars("hermes"), model, grammar, draw)))
        assert name == f"f-{index}"
        jsonschema.validate(json.loads(arguments), offered[index]["function"]["parameters"])


def accepts(form: str, template: str, grammar: str, text: str) -> bool:
    """Whether the text may be all of an answer."""
    matcher = grammars(form, template).begin(grammar)
    tokens = tokenizer(form, template).encode(text)
    return matcher.validate_tokens(tokens) == len(tokens) and matcher.consume_tokens(tokens) and matcher.is_accepting()


CALL = {
    ("hermes", ""): '<tool_call>\n{"name": "f-0", "arguments": {"a": 1}}\n</tool_call>',
    ("llama3", ""): '{"name": "f-0", "parameters": {"a": 1}}',
    ("mistral", ""): '[TOOL_CALLS]f-0[ARGS]{"a": 1}',
    ("mistral", "old"): '[TOOL_CALLS][{"name": "f-0", "arguments": {"a": 1}}]',
    ("deepseek", ""): '<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>f-0<｜tool▁sep｜>{"a": 1}<｜tool▁call▁end｜>'
    "<｜tool▁calls▁end｜>",
    ("deepseek", "```json"): "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>f-0\n```json\n"
    '{"a": 1}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>',
}


@pytest.mark.parametrize(("form", "template"), LAYOUTS)
def test_a_free_answer_is_text_or_strict_calls(form: str, template: str) -> None:
    offered = tools([{"properties": {"a": {"type": "integer"}}, "required": ["a"]}])
    call = CALL[form, template]
    lead = "" if form == "llama3" else "I look. "
    for many in (False, True):
        plan = plan_tools(offered, "auto", None, None, many)
        grammar = tools_grammar(plan, TOOL_FORMS[form], served(form, template))
        assert accepts(form, template, grammar, "Any text, {} and\nlines.")
        assert accepts(form, template, grammar, lead + call)
        assert not accepts(form, template, grammar, lead + call.replace("1", '"1"'))
        assert not accepts(form, template, grammar, lead + call.replace("f-0", "g"))
        after = "; " + call if form == "llama3" else "\n" + call
        assert accepts(form, template, grammar, call + after) == many


def test_where_the_answer_has_to_be_json_it_is_that_or_calls() -> None:
    offered = tools([{"properties": {"a": {"type": "integer"}}, "required": ["a"]}])
    answer = {"type": "object", "properties": {"b": {"type": "boolean"}}, "required": ["b"]}
    plan = plan_tools(offered, None, None, None, None)
    grammar = tools_grammar(plan, TOOL_FORMS["hermes"], served("hermes"), after_reasoning=True, answer=answer)
    assert accepts("hermes", "", grammar, '{"b": true}')
    assert accepts("hermes", "", grammar, "\n\n" + CALL["hermes", ""])
    assert not accepts("hermes", "", grammar, "I look.")
    assert not accepts("hermes", "", grammar, '{"b": 1}')
