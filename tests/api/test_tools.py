"""Tool calls and reasoning in chat, with a scripted model: what clients read, whole and streamed."""

import json
from typing import Any

import httpx
import msgspec
import pytest

from actors.messages import Delta
from api.app import create_app
from api.model import ServedModel
from api.parsers.forms import REASONING_FORMS, TOOL_FORMS, OutputForms
from runtime.sampling_params import ConstraintSpec
from runtime.tokens import Tokenizer
from tests.api.conftest import Server, chat
from tests.api.fake_client import FakeClient

pytestmark = pytest.mark.anyio
URL = "/v1/chat/completions"
ARGS = '{"city": "Paris"}'
CALL = f'<tool_call>\n{{"name": "weather", "arguments": {ARGS}}}\n</tool_call>'
SCHEMA = {
    "type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"], "additionalProperties": False
}  # fmt: skip


def tool(name: str = "weather", **fields: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": SCHEMA} | fields}


TOOLS = [tool(), tool("time")]
REQUIRED = {"type": "function", "function": {"name": "weather"}}


@pytest.fixture
def model(model: ServedModel) -> ServedModel:
    forms = OutputForms(tools=TOOL_FORMS["hermes"], reasoning=REASONING_FORMS["think"])
    return msgspec.structs.replace(model, forms=forms, max_context_tokens=1000)


def app_with(model: ServedModel, client: FakeClient, server: Server, tools: str | None) -> httpx.AsyncClient:
    forms = OutputForms(tools=TOOL_FORMS[tools] if tools else None)
    app = create_app(msgspec.structs.replace(model, forms=forms), client, lambda: server.readiness, server.settings)
    return httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://test")


async def whole(http: httpx.AsyncClient, **fields: Any) -> dict[str, Any]:
    response = await http.post(URL, json=chat(**fields))
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


async def chunks(http: httpx.AsyncClient, **fields: Any) -> list[dict[str, Any]]:
    response = await http.post(URL, json=chat(stream=True, **fields))
    assert response.status_code == 200, response.text
    events = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line]
    assert events[-1] == "[DONE]"
    return [json.loads(event) for event in events[:-1]]


async def refusal(http: httpx.AsyncClient, **fields: Any) -> tuple[str, str]:
    response = await http.post(URL, json=chat(**fields))
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    return error["param"], error["message"]


async def test_a_call_instead_of_content(http: httpx.AsyncClient, client: FakeClient) -> None:
    client.texts = (CALL,)
    choice = (await whole(http, tools=TOOLS))["choices"][0]
    call = choice["message"].pop("tool_calls")[0]
    assert choice["message"] == {"role": "assistant", "content": None, "refusal": None}
    assert call.pop("id").startswith("call_")
    assert call == {"type": "function", "function": {"name": "weather", "arguments": ARGS}}
    assert choice["finish_reason"] == "tool_calls"


async def test_content_before_two_calls(http: httpx.AsyncClient, client: FakeClient) -> None:
    client.texts = (f"I look.\n{CALL}\n{CALL}",)
    message = (await whole(http, tools=TOOLS))["choices"][0]["message"]
    assert message["content"] == "I look."
    assert [call["function"]["name"] for call in message["tool_calls"]] == ["weather"] * 2
    assert len({call["id"] for call in message["tool_calls"]}) == 2


async def test_a_streamed_call_has_the_usual_shape(http: httpx.AsyncClient, client: FakeClient) -> None:
    client.texts = (f"I look. {CALL}\n{CALL}",)
    deltas = [chunk["choices"][0]["delta"] for chunk in await chunks(http, tools=TOOLS)]
    assert deltas[0] == {"role": "assistant", "content": None}
    assert "".join(delta.get("content") or "" for delta in deltas) == "I look."
    calls = [delta["tool_calls"][0] for delta in deltas if "tool_calls" in delta]
    for index in range(2):
        first, *rest = [call for call in calls if call["index"] == index]
        assert first.pop("id").startswith("call_")
        assert first == {"index": index, "type": "function", "function": {"name": "weather", "arguments": ""}}
        assert all(set(call) == {"index", "function"} and set(call["function"]) == {"arguments"} for call in rest)
        assert "".join(call["function"]["arguments"] for call in rest) == ARGS
        assert len(rest) > 3
    assert [call["index"] for call in calls] == sorted(call["index"] for call in calls)


async def test_the_last_chunk_of_a_call_tells_the_reason(http: httpx.AsyncClient, client: FakeClient) -> None:
    client.texts = (CALL,)
    reasons = [chunk["choices"][0]["finish_reason"] for chunk in await chunks(http, tools=TOOLS)]
    assert [reason for reason in reasons if reason] == ["tool_calls"] == reasons[-1:]


async def test_a_call_that_is_cut_off_by_the_length(http: httpx.AsyncClient, client: FakeClient) -> None:
    client.texts = (CALL,)
    num_tokens = len(client.tokenizer.encode(CALL[: CALL.index("Pa") + 2]))
    choice = (await whole(http, tools=TOOLS, max_tokens=num_tokens))["choices"][0]
    assert choice["finish_reason"] == "length"
    assert ARGS.startswith(choice["message"]["tool_calls"][0]["function"]["arguments"])


async def test_without_tools_a_call_is_text(http: httpx.AsyncClient, client: FakeClient) -> None:
    client.texts = (CALL,)
    assert (await whole(http))["choices"][0]["message"]["content"] == CALL
    choice = (await whole(http, tools=TOOLS, tool_choice="none"))["choices"][0]
    assert (choice["message"]["content"], choice["finish_reason"]) == (CALL, "stop")


async def test_reasoning_is_apart_from_the_content(http: httpx.AsyncClient, client: FakeClient) -> None:
    client.texts = ("<think>\nHm: 95?\n</think>\n\nIt is 95.",)
    answer = await whole(http)
    message = answer["choices"][0]["message"]
    assert (message["reasoning_content"], message["reasoning"]) == ("Hm: 95?", "Hm: 95?")
    assert message["content"] == "It is 95."
    thought = len(client.tokenizer.encode("<think>\nHm: 95?\n</think>"))
    assert abs(answer["usage"]["completion_tokens_details"]["reasoning_tokens"] - thought) <= 1
    deltas = [chunk["choices"][0]["delta"] for chunk in await chunks(http)]
    assert "".join(delta.get("reasoning_content", "") for delta in deltas) == "Hm: 95?"
    assert "".join(delta.get("reasoning", "") for delta in deltas) == "Hm: 95?"
    assert "".join(delta.get("content", "") for delta in deltas) == "It is 95."


async def test_reasoning_tokens_are_counted_with_their_tags(http: httpx.AsyncClient, client: FakeClient) -> None:
    async def script(request: Any) -> Any:
        pieces = ["<thi", "nk>", "a", "", "</think>", "b", "c"]
        for position, piece in enumerate(pieces):
            last = position == len(pieces) - 1
            yield Delta(
                request=request.request, choice=0, text=piece, finish="stop" if last else None,
                tokens=(msgspec.convert([5], type=type(client.deltas(request, 0)[0].tokens[0])),),
            )  # fmt: skip
        async for event in client.answer(request):
            if not isinstance(event, Delta):
                yield event

    client.script = script
    usage = (await whole(http))["usage"]
    assert usage["completion_tokens_details"] == {"reasoning_tokens": 5}


async def test_reasoning_can_be_left_out(http: httpx.AsyncClient, client: FakeClient) -> None:
    client.texts = ("<think>Hm.</think>5",)
    answer = await whole(http, include_reasoning=False)
    assert answer["choices"][0]["message"] == {"role": "assistant", "content": "5", "refusal": None}
    assert answer["usage"]["completion_tokens_details"]["reasoning_tokens"] > 0
    streamed = await chunks(http, include_reasoning=False)
    assert all("reasoning" not in key for chunk in streamed for key in chunk["choices"][0]["delta"])


async def test_a_prompt_that_opens_the_block(http: httpx.AsyncClient, client: FakeClient, tokenizer: Tokenizer) -> None:
    client.texts = ("Hm.</think>5",)
    template = tokenizer._wrapped.chat_template
    try:
        tokenizer._wrapped.chat_template = template + "<think>\n"
        message = (await whole(http))["choices"][0]["message"]
    finally:
        tokenizer._wrapped.chat_template = template
    assert (message["reasoning"], message["content"]) == ("Hm.", "5")


async def test_a_call_after_reasoning(http: httpx.AsyncClient, client: FakeClient) -> None:
    client.texts = (f"<think>\nI look.\n</think>\n\n{CALL}",)
    choice = (await whole(http, tools=TOOLS))["choices"][0]
    assert (choice["message"]["reasoning"], choice["message"]["content"]) == ("I look.", None)
    assert choice["message"]["tool_calls"][0]["function"]["arguments"] == ARGS


async def test_each_choice_has_its_own_parser(http: httpx.AsyncClient, client: FakeClient) -> None:
    client.texts = (CALL, "<think>Hm.</think>5", "7")
    choices = (await whole(http, tools=TOOLS, n=3))["choices"]
    assert [choice["finish_reason"] for choice in choices] == ["tool_calls", "stop", "stop"]
    assert [choice["message"]["content"] for choice in choices] == [None, "5", "7"]


async def test_every_token_keeps_its_logprob(http: httpx.AsyncClient, client: FakeClient) -> None:
    client.texts = (f"<think>Hm.</think>5 {CALL}",)
    entries = (await whole(http, tools=TOOLS, logprobs=True))["choices"][0]["logprobs"]["content"]
    assert len(entries) == len(client.tokenizer.encode(client.texts[0]))
    streamed = await chunks(http, tools=TOOLS, logprobs=True)
    found = [entry for chunk in streamed for entry in (chunk["choices"][0]["logprobs"] or {}).get("content", [])]
    assert found == entries


async def test_forced_calls_are_constrained(http: httpx.AsyncClient, client: FakeClient) -> None:
    client.texts = (CALL,)
    choice = (await whole(http, tools=TOOLS, tool_choice=REQUIRED))["choices"][0]
    assert choice["finish_reason"] == "tool_calls"
    spec = client.requests[-1].params.constraint
    assert isinstance(spec, ConstraintSpec)
    assert spec.grammar is not None
    assert "weather" in spec.grammar
    assert "time" not in spec.grammar
    assert client.tokenizer.decode(spec.think_end) == "</think>"
    assert not spec.begins_thinking
    await whole(http, tools=TOOLS, tool_choice="required")
    spec = client.requests[-1].params.constraint
    assert spec is not None
    assert spec.grammar is not None
    assert "weather" in spec.grammar
    assert "time" in spec.grammar


async def test_free_calls_are_constrained_only_on_demand(http: httpx.AsyncClient, client: FakeClient) -> None:
    for fields, constrained in (
        ({"tools": TOOLS}, False),
        ({"tools": TOOLS, "parallel_tool_calls": True}, False),
        ({"tools": TOOLS, "parallel_tool_calls": False}, True),
        ({"tools": [tool(strict=True), tool("time")]}, True),
        ({"tools": [tool(strict=True)], "tool_choice": "none"}, False),
    ):
        await whole(http, **fields)
        assert (client.requests[-1].params.constraint is not None) == constrained, fields


async def test_tools_and_a_form_of_the_answer(http: httpx.AsyncClient, client: FakeClient) -> None:
    answer = {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "integer"}}}
    await whole(http, tools=TOOLS, response_format=answer)
    spec = client.requests[-1].params.constraint
    assert spec is not None
    assert "weather" in str(spec.grammar)
    assert "integer" in str(spec.grammar)
    await whole(http, tools=TOOLS, response_format=answer, tool_choice="none")
    spec = client.requests[-1].params.constraint
    assert spec is not None
    assert "weather" not in str(spec.grammar)
    param, message = await refusal(http, tools=TOOLS, structured_outputs={"regex": "a+"})
    assert param == "structured_outputs.regex"
    assert "tools" in message


async def test_one_call_at_most(http: httpx.AsyncClient, client: FakeClient) -> None:
    client.texts = (f"{CALL}{CALL}",)
    message = (await whole(http, tools=TOOLS, parallel_tool_calls=False))["choices"][0]["message"]
    assert len(message["tool_calls"]) == 1


async def test_functions_of_old(http: httpx.AsyncClient, client: FakeClient) -> None:
    client.texts = (CALL,)
    old = {"functions": [TOOLS[0]["function"]]}
    choice = (await whole(http, **old))["choices"][0]
    assert choice["message"]["function_call"] == {"name": "weather", "arguments": ARGS}
    assert "tool_calls" not in choice["message"]
    assert choice["finish_reason"] == "function_call"
    deltas = [chunk["choices"][0]["delta"] for chunk in await chunks(http, **old)]
    calls = [delta["function_call"] for delta in deltas if "function_call" in delta]
    assert calls[0] == {"name": "weather", "arguments": ""}
    assert "".join(call["arguments"] for call in calls) == ARGS
    assert (await whole(http, function_call="none", **old))["choices"][0]["message"]["content"] == CALL
    await whole(http, function_call={"name": "weather"}, **old)
    assert client.requests[-1].params.constraint is not None


async def test_conversations_of_old(http: httpx.AsyncClient, client: FakeClient) -> None:
    messages = [
        {"role": "user", "content": "?"},
        {"role": "assistant", "content": None, "function_call": {"name": "add", "arguments": '{"a": 7}'}},
        {"role": "function", "name": "add", "content": "95"},
    ]
    assert (await http.post(URL, json={"messages": messages})).status_code == 200
    prompt = b"".join(map(client.tokenizer.piece, client.requests[-1].prompt)).decode()
    assert "(add 7)<|im_end|>\n<|im_start|>tool\n95<|im_end|>" in prompt


async def test_a_model_without_a_form_can_only_be_made_to_call(
    model: ServedModel, client: FakeClient, server: Server
) -> None:
    client.texts = (f'{{"name": "weather", "parameters": {ARGS}}}',)
    async with app_with(model, client, server, None) as http:
        param, message = await refusal(http, tools=TOOLS)
        assert param == "tools"
        assert "--tool-call-parser" in message
        message_ = (await whole(http, tools=TOOLS, tool_choice="required"))["choices"][0]["message"]
        assert message_["tool_calls"][0]["function"] == {"name": "weather", "arguments": ARGS}


async def test_ids_have_the_length_that_mistrals_template_asks_for(
    model: ServedModel, client: FakeClient, server: Server
) -> None:
    client.texts = (f"[TOOL_CALLS]weather[ARGS]{ARGS}",)
    async with app_with(model, client, server, "mistral") as http:
        call = (await whole(http, tools=TOOLS))["choices"][0]["message"]["tool_calls"][0]
    assert call["function"] == {"name": "weather", "arguments": ARGS}
    assert len(call["id"]) == 9
    assert call["id"].isalnum()


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"tools": [tool("a b")]}, "tools[0].function.name", "'a b'"),
        ({"tools": [tool("x" * 65)]}, "tools[0].function.name", "64"),
        ({"tools": [tool(), tool()]}, "tools[1]", "weather"),
        ({"tools": [{"type": "function", "function": {}}]}, "tools[0]", "name"),
        ({"tools": [tool(parameters=[])]}, "tools[0].function.parameters", "schema"),
        ({"tools": [tool(parameters={"type": "array"})]}, "tools[0].function.parameters.type", "array"),
        ({"tools": [tool(strict="yes")]}, "tools[0].function.strict", "true or false"),
        ({"tools": [tool(description=5)]}, "tools[0].function.description", "text"),
        ({"tools": [tool(str(index)) for index in range(129)]}, "tools", "128"),
        ({"tools": [tool(description="x" * 600_000)]}, "tools", "bytes"),
        ({"tools": TOOLS, "tool_choice": "any"}, "tool_choice", "required"),
        (
            {"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "g"}}},
            "tool_choice", "not among the tools",
        ),
        ({"tool_choice": REQUIRED}, "tool_choice", "tools"),
        ({"functions": [tool()["function"]], "tools": TOOLS}, "functions", "tools"),
        ({"functions": [tool()["function"]], "function_call": {}}, "function_call", "auto"),
        ({"functions": [tool()["function"]], "tool_choice": "none"}, "tool_choice", "functions"),
        ({"tools": TOOLS, "function_call": "none"}, "function_call", "tools"),
        ({"function_call": {"name": "weather"}}, "function_call", "functions"),
        (
            {"tools": [tool(parameters={"type": "object", "properties": {"a": {"type": "integr"}}}), tool("b")],
             "tool_choice": "required"},
            "tools[0].function.parameters", "integr",
        ),
    ],
)  # fmt: skip
async def test_refusals_name_the_field(http: httpx.AsyncClient, fields: Any, param: str, words: str) -> None:
    found, message = await refusal(http, **fields)
    assert found == param
    assert words in message
