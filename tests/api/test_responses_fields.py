"""Each field's effect: what both surfaces have does the same on both, and the rest does what its name says."""

from typing import Any

import httpx
import msgspec
import pytest

from actors.client import GenerateRequest
from api.app import create_app
from api.model import Readiness, ServedModel
from tests.api.fake_client import FakeClient
from tests.api.test_responses import URL, ask, prompt_of
from tests.api.test_responses_conversation import CHAT_TOOL, TOOL
from tests.runtime.tiny_tokenizer import TEMPLATE, tiny_tokenizer

pytestmark = pytest.mark.anyio
CHAT = "/v1/chat/completions"
MESSAGES = [{"role": "user", "content": "What is 37 + 58?"}]
OTHER = {**TOOL, "name": "subtract"}

SHARED: list[dict[str, Any]] = [
    {"temperature": 0.3}, {"top_p": 0.5}, {"top_k": 7}, {"min_p": 0.2}, {"presence_penalty": 1},
    {"frequency_penalty": -1}, {"repetition_penalty": 1.5}, {"logit_bias": {"5": 3}}, {"seed": 9}, {"stop": ["a", "b"]},
    {"stop_token_ids": [5]}, {"cache_salt": "mine"}, {"ignore_eos": True}, {"min_tokens": 3},
    {"allowed_token_ids": [5, 6]}, {"include_stop_str_in_output": True, "stop": "a"}, {"skip_special_tokens": False},
    {"truncate_prompt_tokens": 5}, {"add_special_tokens": True}, {"priority": 4}, {"timeout_s": 2.5},
    {"structured_outputs": {"regex": "[a-z]+"}}, {"structured_outputs": {"choice": ["a", "b"]}},
    {"bad_words": ["Hello"]},
]  # fmt: skip


@pytest.mark.parametrize("fields", SHARED, ids=lambda fields: "+".join(fields))
async def test_shared_fields(http: httpx.AsyncClient, client: FakeClient, fields: dict[str, Any]) -> None:
    for path, body in ((URL, ask()), (CHAT, {"messages": MESSAGES}), (URL, ask(**fields)),
                       (CHAT, {"messages": MESSAGES} | fields)):  # fmt: skip
        answer = await http.post(path, json=body)
        assert answer.status_code == 200, answer.text
    plain, plain_chat, with_field, with_field_chat = (nameless(request) for request in client.requests)
    assert plain == plain_chat
    assert with_field == with_field_chat
    assert (with_field != plain) is (fields != {"add_special_tokens": True})


def nameless(request: GenerateRequest) -> GenerateRequest:
    return msgspec.structs.replace(request, request="")


async def test_tokens_by_their_ids(http: httpx.AsyncClient, client: FakeClient) -> None:
    fields = {"include": ["message.output_text.logprobs"], "return_tokens_as_token_ids": True}
    (item,) = (await http.post(URL, json=ask(**fields))).json()["output"]
    assert item["content"][0]["logprobs"][0]["token"] == f"token_id:{client.tokenizer.encode(client.texts[0])[0]}"


async def test_max_output_tokens(http: httpx.AsyncClient, client: FakeClient) -> None:
    answer = (await http.post(URL, json=ask(max_output_tokens=2))).json()
    assert client.requests[0].params.max_tokens == 2
    assert (answer["max_output_tokens"], answer["usage"]["output_tokens"]) == (2, 2)
    assert (answer["status"], answer["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})


async def test_the_templates_variables(model: ServedModel, client: FakeClient) -> None:
    tokenizer = tiny_tokenizer(template="{{ reasoning_effort }}/{{ enable_thinking }}/" + TEMPLATE)
    app = create_app(msgspec.structs.replace(model, tokenizer=tokenizer), client, lambda: Readiness(state="ready"))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://test") as http:
        fields = {"reasoning": {"effort": "low", "summary": "auto"}, "chat_template_kwargs": {"enable_thinking": 7}}
        answer = (await http.post(URL, json=ask(**fields))).json()
    assert answer["reasoning"] == {"effort": "low", "summary": "auto"}
    assert prompt_of(client).startswith("low/7/<|im_start|>user")


@pytest.mark.parametrize(
    ("choice", "shown"),
    [
        (None, "[add][subtract]"),
        ("auto", "[add][subtract]"),
        ("none", ""),
        ({"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "add"}]}, "[add]"),
    ],
)
async def test_tools(http: httpx.AsyncClient, client: FakeClient, choice: Any, shown: str) -> None:
    answer = (await http.post(URL, json=ask(tools=[TOOL, OTHER], tool_choice=choice))).json()
    assert answer["tools"] == [TOOL, OTHER]
    assert answer["tool_choice"] == ("auto" if choice is None else choice)
    assert prompt_of(client).startswith(f"{shown}<|im_start|>user")


NAMED = {"type": "function", "name": "add"}
CHAT_NAMED = {"type": "function", "function": {"name": "add"}}


@pytest.mark.parametrize(
    ("choice", "chat_choice"), [("required", "required"), (NAMED, CHAT_NAMED), ("none", "none"), (None, None)]
)
@pytest.mark.parametrize("many", [None, False])
async def test_tools_run_as_chats(
    http: httpx.AsyncClient, client: FakeClient, choice: Any, chat_choice: Any, many: bool | None
) -> None:
    """The same prompt and the same grammar; what chat refuses is refused."""
    both = {"parallel_tool_calls": many, "seed": 1}
    other = {"type": "function", "function": {key: value for key, value in OTHER.items() if key != "type"}}
    own = await http.post(URL, json=ask(tools=[TOOL, OTHER], tool_choice=choice, **both))
    chat = {"messages": MESSAGES, "tools": [CHAT_TOOL, other], "tool_choice": chat_choice}
    theirs = await http.post(CHAT, json=chat | both)
    assert own.status_code == theirs.status_code, (own.text, theirs.text)
    if own.status_code == 200:
        mine, its = map(nameless, client.requests)
        assert mine == its
        assert (mine.params.constraint is None) is (choice == "none")
        assert own.json()["parallel_tool_calls"] is (many is not False)
    else:
        assert own.json()["error"]["param"] == theirs.json()["error"]["param"] == "tools"


SCHEMA = {"type": "object", "properties": {"value": {"type": "integer"}}, "required": ["value"]}
NAMED_SCHEMA = {"name": "sum", "schema": SCHEMA, "strict": True, "description": "A sum."}


@pytest.mark.parametrize(
    ("form", "chat_form"),
    [
        ({"type": "text"}, {"type": "text"}),
        ({"type": "json_object"}, {"type": "json_object"}),
        ({"type": "json_schema", **NAMED_SCHEMA}, {"type": "json_schema", "json_schema": NAMED_SCHEMA}),
    ],
)
async def test_formats_constrain_as_chats(
    http: httpx.AsyncClient, client: FakeClient, form: Any, chat_form: Any
) -> None:
    own = await http.post(URL, json=ask(text={"format": form}))
    assert own.status_code == 200, own.text
    assert own.json()["text"] == {"format": form}
    assert (await http.post(CHAT, json={"messages": MESSAGES, "response_format": chat_form})).status_code == 200
    mine, its = map(nameless, client.requests)
    assert mine == its
    assert (mine.params.constraint is None) is (form["type"] == "text")


@pytest.mark.parametrize(
    ("form", "param"),
    [
        ({"type": "json_schema", "name": "sum", "schema": {"type": 5}}, "text.format.schema"),
        ({"type": "json_schema", "name": "sum", "schema": {"$ref": "#/nowhere"}}, "text.format.schema"),
    ],
)
async def test_a_schema_that_is_none_is_refused(http: httpx.AsyncClient, form: Any, param: str) -> None:
    answer = await http.post(URL, json=ask(text={"format": form}))
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["param"].startswith(param)
    assert error["param"] in error["message"]


async def test_one_field_says_what_the_answer_looks_like(http: httpx.AsyncClient) -> None:
    both = {"text": {"format": {"type": "json_object"}}, "structured_outputs": {"regex": "a"}}
    error = (await http.post(URL, json=ask(**both))).json()["error"]
    assert error["param"] == "structured_outputs.regex"
    assert "text.format" in error["message"]


async def test_labels_are_shown_again(http: httpx.AsyncClient) -> None:
    labels = {"metadata": {"a": "b"}, "user": "u", "safety_identifier": "s", "prompt_cache_key": "p",
              "max_tool_calls": 3, "truncation": "auto", "text": {"verbosity": "low"}}  # fmt: skip
    answer = (await http.post(URL, json=ask(service_tier="auto", **labels))).json()
    assert {name: answer[name] for name in labels} == labels | {
        "text": {"format": {"type": "text"}, "verbosity": "low"}
    }
    assert answer["service_tier"] == "default"


async def test_a_continued_response_inherits_no_settings(http: httpx.AsyncClient, client: FakeClient) -> None:
    first = (await http.post(URL, json=ask(temperature=0.1, tools=[TOOL], metadata={"a": "b"}))).json()
    second = (await http.post(URL, json=ask(previous_response_id=first["id"]))).json()
    assert (second["temperature"], second["tools"], second["metadata"]) == (0.6, [], {})
    assert "[add]" not in prompt_of(client)
