from collections.abc import Sequence
from typing import Any

import httpx
import msgspec
import pytest

from api.model import ServedModel
from api.parsers.forms import REASONING_FORMS, OutputForms
from api.schema import ChatBody, CompletionBody, SamplingBody, StructuredOutputs
from api.structured import constraint_behind, resolve_constraint
from runtime.constraints import ConstraintError, HostConstraints
from runtime.errors import RequestError
from runtime.sampling_params import ConstraintSpec, SamplingParams
from tests.api.conftest import chat
from tests.api.fake_client import FakeClient
from tests.runtime.tiny_tokenizer import TURN_END, TURN_START

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": False}
TAG = {"structures": [{"begin": "<f>", "schema": {"type": "integer"}, "end": "</f>"}], "triggers": ["<f>"]}


@pytest.fixture
def served(model: ServedModel) -> ServedModel:
    host = HostConstraints(model.tokenizer, model.vocab_size)
    forms = OutputForms(reasoning=REASONING_FORMS["think"])
    return msgspec.structs.replace(model, check_grammar=host.check_grammar, forms=forms)


def spec_of(served: ServedModel, body: SamplingBody | None = None, **fields: Any) -> ConstraintSpec | None:
    return resolve_constraint(body or msgspec.convert(fields, ChatBody), served)


def fits(served: ServedModel, spec: ConstraintSpec | None, text: str) -> bool:
    """Whether a whole text is what the spec allows, asked of the constraint itself."""
    stop = served.eos_token_ids
    params = SamplingParams(seed=0, max_tokens=100, stop_token_ids=stop, constraint=spec)
    tokens = served.tokenizer.encode(text)
    try:
        constraint = HostConstraints(served.tokenizer, served.vocab_size).begin(params, tokens)
        if not constraint.is_complete:
            constraint.advance(stop[0])
    except ConstraintError:
        return False
    return True


@pytest.mark.parametrize(
    ("fields", "right", "wrong"),
    [
        ({"response_format": {"type": "json_object"}}, '{"x": [1, "y"]}', "[1]"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA}}}, '{"a":1}', "{}"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"strict": True, "schema": SCHEMA}}},
            '{"a": 12}',
            '{"a":1,"b":2}',
        ),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "n"}}}, "{}", "1"),
        ({"response_format": {"type": "structural_tag"} | TAG}, "so <f>7</f>.", "so <f>x</f>."),
        ({"structured_outputs": {"json": SCHEMA}}, '{"a":1}', '{"a":"1"}'),
        ({"structured_outputs": {"json": '{"type":"boolean"}'}}, "true", "1"),
        ({"structured_outputs": {"json_object": True}}, "{}", "true"),
        ({"structured_outputs": {"regex": "[0-9]{2}"}}, "42", "4"),
        ({"structured_outputs": {"choice": ["yes", "no"]}}, "no", "maybe"),
        ({"structured_outputs": {"grammar": 'root ::= "a" | "b"'}}, "b", "ab"),
        ({"structured_outputs": {"grammar": "start: /[ab]/"}}, "b", "c"),
        ({"structured_outputs": {"structural_tag": TAG}}, "<f>1</f>", "<f>1"),
        ({"structured_outputs": {"structural_tag": msgspec.json.encode(TAG).decode()}}, "<f>1</f>", "<f>1"),
        ({"guided_json": SCHEMA}, '{"a":1}', "{}"),
        ({"guided_regex": "x+"}, "xxx", "y"),
        ({"guided_choice": ["left", "right"]}, "left", "up"),
        ({"guided_grammar": 'root ::= "c"'}, "c", "d"),
    ],
)  # fmt: skip
def test_each_field_says_what_the_answer_looks_like(
    served: ServedModel, fields: dict[str, Any], right: str, wrong: str
) -> None:
    spec = spec_of(served, **fields)
    assert fits(served, spec, right)
    assert not fits(served, spec, wrong)


@pytest.mark.parametrize(
    "fields", [{}, {"response_format": {"type": "text"}}, {"structured_outputs": {}}, {"bad_words": []},
               {"structured_outputs": {"json_object": False}}]
)  # fmt: skip
def test_nothing_asked_is_no_constraint(served: ServedModel, fields: dict[str, Any]) -> None:
    assert spec_of(served, **fields) is None


def json_schema(schema: Any) -> dict[str, Any]:
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}}


NESTED = {"type": "object", "properties": {"a": {"type": "array", "items": {"not": {}}}}}
DEEP: dict[str, Any] = {}
for _ in range(80):
    DEEP = {"items": DEEP, "type": "array", "anyOf": [{}]}


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"response_format": {"type": "xml"}}, "response_format.type", ["json_schema", "xml"]),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", ["schema"]),
        ({"response_format": {"type": "json_schema", "json_schema": {"strict": True}}},
         "response_format.json_schema.schema", ["strict"]),
        (json_schema(NESTED), "response_format.json_schema.schema", ["properties.a.items", "not"]),
        (json_schema({"$defs": {"x": {"type": "strin"}}, "$ref": "#/$defs/x"}),
         "response_format.json_schema.schema", ["$defs.x", "strin"]),
        (json_schema({"anyOf": [{"type": "string"}, {"type": "string", "pattern": "a("}]}),
         "response_format.json_schema.schema", ["anyOf.1", "unclosed"]),
        (json_schema({"type": "array", "uniqueItems": True}), "response_format.json_schema.schema", ["uniqueItems"]),
        (json_schema({"x-guidance": {"lenient": True}}), "response_format.json_schema.schema", ["reserved"]),
        (json_schema({"const": "x" * 70_000}), "response_format.json_schema.schema", ["65536"]),
        (json_schema({"a": DEEP}), "response_format.json_schema.schema", ["64"]),
        ({"structured_outputs": {"json": "[1]"}}, "structured_outputs.json", ["object"]),
        ({"structured_outputs": {"regex": "a("}}, "structured_outputs.regex", ["unclosed group"]),
        ({"structured_outputs": {"regex": "a" * 5000}}, "structured_outputs.regex", ["4096"]),
        ({"structured_outputs": {"choice": []}}, "structured_outputs.choice", ["1000"]),
        ({"structured_outputs": {"choice": ["a"] * 1001}}, "structured_outputs.choice", ["1001"]),
        ({"structured_outputs": {"choice": ["a", ""]}}, "structured_outputs.choice", ["empty"]),
        ({"structured_outputs": {"grammar": "start: nope"}}, "structured_outputs.grammar", ["nope", "1("]),
        ({"structured_outputs": {"grammar": 'root ::= "a" nope'}}, "structured_outputs.grammar", ["nope"]),
        ({"structured_outputs": {"grammar": "no grammar"}}, "structured_outputs.grammar", ["::="]),
        ({"structured_outputs": {"structural_tag": {"format": {}}}}, "structured_outputs.structural_tag.format", []),
        ({"structured_outputs": {"structural_tag": TAG | {"triggers": ["<g>"]}}},
         "structured_outputs.structural_tag.structures[0].begin", ["triggers"]),
        ({"structured_outputs": {"structural_tag": {"triggers": []}}},
         "structured_outputs.structural_tag", ["structures"]),
        ({"structured_outputs": {"regex": "a", "choice": ["a"]}}, "structured_outputs.choice", ["regex"]),
        ({"response_format": {"type": "json_object"}, "guided_regex": "a"}, "guided_regex", ["response_format"]),
        ({"bad_words": ["a"] * 300}, "bad_words", ["256"]),
        ({"bad_words": [" "]}, "bad_words", ["white space"]),
        ({"thinking_token_budget": -1}, "thinking_token_budget", ["-1"]),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_with_its_field_and_place(
    served: ServedModel, fields: dict[str, Any], param: str, words: list[str]
) -> None:
    with pytest.raises(RequestError) as caught:
        spec_of(served, **fields)
    assert caught.value.param == param
    assert [word for word in words if word not in caught.value.message] == []


def test_bad_words_are_spelt_with_and_without_a_space_before(served: ServedModel) -> None:
    spec = spec_of(served, bad_words=["hello", " hello"])
    assert spec is not None
    encode = served.tokenizer.encode
    assert spec.bad_words == (tuple(encode("hello")), tuple(encode(" hello")))


def test_a_budget_needs_a_model_that_thinks(model: ServedModel, served: ServedModel) -> None:
    spec = spec_of(served, thinking_token_budget=7)
    assert spec is not None
    assert (spec.thinking_budget, spec.think_start) == (7, tuple(served.tokenizer.encode("<think>")))
    with pytest.raises(RequestError, match="no thinking block"):
        spec_of(model, thinking_token_budget=7)


@pytest.mark.parametrize(
    ("prompt", "begins", "may_think"),
    [
        (f"{TURN_START}hi{TURN_END}{TURN_START}assistant\n", False, True),
        (f"{TURN_START}hi{TURN_END}{TURN_START}assistant\n<think>\n", True, True),
        (f"{TURN_START}hi{TURN_END}{TURN_START}assistant\n<think>\nso far", True, True),
        (f"{TURN_START}hi{TURN_END}{TURN_START}assistant\n<think>\n\n</think>\n\n", False, False),
        (f"{TURN_START}say <think>{TURN_END}{TURN_START}assistant\n", False, True),
    ],
)
def test_where_a_prompt_leaves_a_chat_with_its_thoughts(
    served: ServedModel, prompt: str, begins: bool, may_think: bool
) -> None:
    body = msgspec.convert({"guided_regex": "a"}, ChatBody)
    spec = constraint_behind(served.tokenizer.encode(prompt), resolve_constraint(body, served), body, served)
    assert spec is not None
    assert spec.begins_thinking is begins
    assert bool(spec.think_end) is may_think


def test_behind_a_plain_text_the_grammar_begins_at_once(served: ServedModel) -> None:
    body = msgspec.convert({"guided_regex": "a"}, CompletionBody)
    spec = constraint_behind(served.tokenizer.encode("hi"), resolve_constraint(body, served), body, served)
    assert spec is not None
    assert spec.think_end == ()


@pytest.mark.parametrize("url", ["/v1/chat/completions", "/v1/completions"])
async def test_both_endpoints_hand_the_constraint_on(http: httpx.AsyncClient, client: FakeClient, url: str) -> None:
    fields: dict[str, Any] = {"structured_outputs": {"choice": ["yes", "no"]}, "bad_words": ["maybe"], "n": 2}
    body = chat(**fields) if "chat" in url else {"prompt": ["one", "two"]} | fields
    answer = await http.post(url, json=body)
    assert answer.status_code == 200, answer.text
    specs: Sequence[ConstraintSpec | None] = [request.params.constraint for request in client.requests]
    assert len(specs) == (1 if "chat" in url else 2)
    for spec in specs:
        assert spec is not None
        assert "yes" in (spec.grammar or "")
        assert spec.bad_words


async def test_unknown_keys_of_structured_outputs_are_refused_by_name(http: httpx.AsyncClient) -> None:
    answer = await http.post("/v1/chat/completions", json=chat(structured_outputs={"whitespace_pattern": " "}))
    assert answer.status_code == 400
    assert "whitespace_pattern" in answer.text


def test_a_boolean_is_a_schema(served: ServedModel) -> None:
    spec = resolve_constraint(ChatBody(guided_json=True), served)
    assert spec is not None
    assert fits(served, spec, '{"a": 1}')
    for body, field in (
        (ChatBody(guided_json=False), "guided_json"),
        (ChatBody(structured_outputs=StructuredOutputs(json=False)), "structured_outputs.json"),
    ):
        with pytest.raises(RequestError, match=field):
            resolve_constraint(body, served)
