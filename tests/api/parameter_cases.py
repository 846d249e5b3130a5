"""For every parameter that `/openapi.json` lists and that is no top-level field of a chat or a completion: a request
that shows its effect, one that shows how it is refused, or the test that does.

`BODIES` tells how a schema's fields get into a request. Effects are looked for in the engine's request and in the
answer; what the chat template is told is the prompt.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tests.api.field_cases import (
    CASES,
    CHAT,
    COMPLETIONS,
    MESSAGE,
    SHARED,
    Effect,
    Elsewhere,
    Refusal,
    Seen,
    has_grammar,
    sampling,
)
from tests.api.parameters import Parameter
from tests.runtime.tiny_tokenizer import END

RESPONSES = "/v1/responses"
FUNCTION = {"type": "function", "name": "add", "parameters": {}}
LOGPROBS = {"include": ["message.output_text.logprobs"]}
FORMAT = {"format": {"type": "json_object"}}


@dataclass(frozen=True)
class Ignored:
    """The field at `value` changes neither the engine's request nor the answer."""

    value: Any
    others: dict[str, Any] = field(default_factory=dict)


Case = Effect | Refusal | Elsewhere | Ignored
Body = tuple[str, dict[str, Any]]


def _message(**message: Any) -> Body:
    return CHAT, {"messages": [MESSAGE | message]}


def _call(**call: Any) -> Body:
    calls = [{"id": "call_1", "function": {"name": "add"}} | call]
    return CHAT, {"messages": [MESSAGE, {"role": "assistant", "tool_calls": calls}]}


BODIES: dict[str, Callable[..., Body]] = {
    "ChatBody": lambda **fields: (CHAT, {"messages": [MESSAGE]} | fields),
    "CompletionBody": lambda **fields: (COMPLETIONS, {"prompt": "Hello"} | fields),
    "ResponsesBody": lambda **fields: (RESPONSES, {"input": "Hello"} | fields),
    "StreamOptions": lambda **fields: (CHAT, {"messages": [MESSAGE], "stream": True, "stream_options": fields}),
    "ResponseStreamOptions": lambda **fields: (RESPONSES, {"input": "Hello", "stream": True, "stream_options": fields}),
    "StructuredOutputs": lambda **fields: (COMPLETIONS, {"prompt": "Hello", "structured_outputs": fields}),
    "Reasoning": lambda **fields: (RESPONSES, {"input": "Hello", "reasoning": fields}),
    "TextConfig": lambda **fields: (RESPONSES, {"input": "Hello", "text": fields}),
    "ChatMessage": _message,
    "ContentPart": lambda **fields: _message(content=[{"type": "text", "text": "Hello"} | fields]),
    "ToolCall": _call,
    "CalledFunction": lambda **fields: _call(function={"name": "add"} | fields),
    "TokenizeBody": lambda **fields: ("/tokenize", ({} if "messages" in fields else {"prompt": "Hello"}) | fields),
    "DetokenizeBody": lambda **fields: ("/detokenize", {"tokens": [40]} | fields),
    "DrainBody": lambda **fields: ("/admin/workers/decode.0/drain", fields),
    "ChaosBody": lambda **fields: ("/admin/chaos", fields),
}


def _told(seen: Seen) -> Any:
    """What the chat template was told."""
    return json.loads(seen.prompt.removeprefix(END))


def _turn(key: str, value: Any, **others: Any) -> Effect:
    """An effect on what the template learns of the only message."""
    return Effect(value, lambda seen: _told(seen)["messages"][0].get(key), value, others)


def _made(key: str, value: Any) -> Effect:
    """An effect on what the template learns of a call."""
    return Effect(value, lambda seen: _told(seen)["messages"][1]["tool_calls"][0][key], value)


def _function(key: str, value: Any, expected: Any) -> Effect:
    return Effect(value, lambda seen: _told(seen)["messages"][1]["tool_calls"][0]["function"][key], expected)


def _shown(name: str, value: Any) -> Effect:
    """An effect on the response, which shows the field again."""
    return Effect(value, lambda seen: seen.answer.get(name), value)


def _output(seen: Seen) -> Any:
    """The only part of the output's only message."""
    return seen.answer["output"][-1]["content"][0]


def _not_here(value: Any) -> Refusal:
    return Refusal(value, "not an option of this endpoint")


def _usage(seen: Seen) -> int:
    return sum(1 for event in seen.answer if isinstance(event, dict) and event.get("usage"))


_ENGINES_OWN = (
    "model", "temperature", "top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty",
    "logit_bias", "seed", "stop_token_ids", "cache_salt", "ignore_eos", "min_tokens", "allowed_token_ids",
    "skip_special_tokens", "spaces_between_special_tokens", "truncate_prompt_tokens", "priority", "timeout_s",
    "structured_outputs", "guided_json", "guided_regex", "guided_choice", "guided_grammar", "bad_words",
    "use_beam_search", "logits_processors", "prompt_embeds",
)  # fmt: skip
"""Fields whose cases look at nothing that is another on this endpoint."""

_RESPONSES_BODY: dict[str, Case] = {
    **{name: SHARED[name] for name in _ENGINES_OWN},
    "max_tokens": _not_here(3),
    "max_completion_tokens": _not_here(3),
    "max_output_tokens": sampling("max_tokens", 3),
    "n": Refusal(2, "must be 1"),
    "stop": Effect([" is"], lambda seen: _output(seen)["text"], "The answer"),
    "include_stop_str_in_output": Effect(True, lambda seen: _output(seen)["text"], "The answer is", {"stop": [" is"]}),
    "stream": Effect(True, lambda seen: isinstance(seen.answer, list), True),
    "stream_options": Refusal({"include_usage": True}, "only allowed when stream is true"),
    "prompt_logprobs": _not_here(2),
    "return_token_ids": _not_here(True),
    "return_tokens_as_token_ids": Effect(
        True, lambda seen: _output(seen)["logprobs"][0]["token"].startswith("token_id:"), True, LOGPROBS
    ),
    "add_special_tokens": Effect(True, lambda seen: seen.prompt.startswith(END), True),
    "thinking_token_budget": Effect(
        7, lambda seen: getattr(seen.request.params.constraint, "thinking_budget", None), 7
    ),
    "input": Effect("Bye", lambda seen: _told(seen)["messages"][0]["content"], "Bye"),
    "instructions": Effect("Be brief.", lambda seen: _told(seen)["messages"][0]["content"], "Be brief."),
    "previous_response_id": Elsewhere("tests.api.test_responses_conversation:test_a_response_continues_another"),
    "max_tool_calls": _shown("max_tool_calls", 3),
    "background": Elsewhere("tests.api.test_responses_background:test_it_is_polled"),
    "store": Elsewhere("tests.api.test_responses_conversation:test_what_was_not_stored_cannot_be_continued"),
    "include": Effect(LOGPROBS["include"], lambda seen: len(_output(seen)["logprobs"]) > 0, True),
    "top_logprobs": Effect(3, lambda seen: [len(one["top_logprobs"]) for one in _output(seen)["logprobs"]][:1], [3]),
    "metadata": _shown("metadata", {"a": "b"}),
    "user": _shown("user", "me"),
    "safety_identifier": _shown("safety_identifier", "me"),
    "prompt_cache_key": _shown("prompt_cache_key", "me"),
    "service_tier": Ignored("flex"),
    "parallel_tool_calls": Elsewhere("tests.api.test_responses_fields:test_tools_run_as_chats"),
    "reasoning": Effect({"effort": "low"}, lambda seen: _told(seen)["effort"], "low"),
    "chat_template_kwargs": Effect({"enable_thinking": False}, lambda seen: _told(seen)["thinking"], False),
    "text": Effect(FORMAT, has_grammar, True),
    "tools": Effect([FUNCTION], lambda seen: [one["function"]["name"] for one in _told(seen)["tools"] or []], ["add"]),
    "tool_choice": Effect("none", lambda seen: _told(seen)["tools"], None, {"tools": [FUNCTION]}),
    "truncation": Elsewhere("tests.api.test_responses_conversation:test_truncation_drops_the_oldest_turns"),
    "conversation": Refusal("conv_1", "conversations are not kept"),
    "prompt": Refusal({"id": "pmpt_1"}, "prompt templates are not kept"),
    "moderation": Refusal({"model": "x"}, "there is no moderation"),
    "context_management": Refusal([{"type": "compaction"}], "nothing is compacted"),
    "background_options": Refusal({"completion_window": "2h"}, "there is one kind"),
    "echo": _not_here(True),
    "response_format": _not_here({"type": "json_object"}),
    "messages": _not_here([MESSAGE]),
    "logprobs": _not_here(True),
    "reasoning_effort": _not_here("low"),
    "functions": _not_here([{"name": "add"}]),
    "continue_final_message": _not_here(True),
    "add_generation_prompt": _not_here(True),
}

_FORMS = Elsewhere("tests.api.test_structured:test_each_field_says_what_the_answer_looks_like")

_NESTED: dict[str, dict[str, Case]] = {
    "ResponsesBody": _RESPONSES_BODY,
    "StreamOptions": {
        "include_usage": Effect(True, _usage, 1),
        "continuous_usage_stats": Effect(True, lambda seen: _usage(seen) > 1, True, {"include_usage": True}),
    },
    "ResponseStreamOptions": {
        "include_usage": Ignored(True),
        "continuous_usage_stats": _not_here(True),
        "include_obfuscation": _not_here(True),
    },
    "StructuredOutputs": dict.fromkeys(("json", "regex", "choice", "grammar", "json_object", "structural_tag"), _FORMS),
    "Reasoning": {
        "effort": Effect("low", lambda seen: _told(seen)["effort"], "low"),
        "summary": Effect("auto", lambda seen: seen.answer["reasoning"]["summary"], "auto"),
        "generate_summary": Effect("auto", lambda seen: seen.answer["reasoning"]["summary"], "auto"),
        "context": Refusal("all_turns", "must be one of auto"),
        "mode": Refusal("pro", "must be one of standard"),
    },
    "TextConfig": {
        "format": Effect(FORMAT["format"], has_grammar, True),
        "verbosity": Effect("low", lambda seen: seen.answer["text"].get("verbosity"), "low"),
    },
    "ChatMessage": {
        "role": _turn("role", "system"),
        "content": _turn("content", "Bye"),
        "name": _turn("name", "Ada"),
        "tool_calls": Effect(
            [{"id": "1", "function": {"name": "add"}}],
            lambda seen: [one["id"] for one in _told(seen)["messages"][0].get("tool_calls", [])],
            ["1"],
            {"role": "assistant"},
        ),
        "function_call": Effect(
            {"name": "add"},
            lambda seen: [one["function"]["name"] for one in _told(seen)["messages"][0].get("tool_calls", [])],
            ["add"],
            {"role": "assistant"},
        ),
        "tool_call_id": _turn("tool_call_id", "call_1", role="tool"),
        "reasoning_content": _turn("reasoning_content", "hm", role="assistant"),
        "reasoning": Effect(
            "hm", lambda seen: _told(seen)["messages"][0].get("reasoning_content"), "hm", {"role": "assistant"}
        ),
    },
    "ContentPart": {
        "type": Refusal("image_url", "only text parts are supported"),
        "text": Effect("Bye", lambda seen: _told(seen)["messages"][0]["content"], "Bye"),
    },
    "ToolCall": {
        "function": Effect(
            {"name": "subtract"},
            lambda seen: _told(seen)["messages"][1]["tool_calls"][0]["function"]["name"],
            "subtract",
        ),
        "id": _made("id", "call_9"),
        "type": Refusal("custom", "only functions"),
    },
    "CalledFunction": {
        "name": _function("name", "subtract", "subtract"),
        "arguments": _function("arguments", '{"a": 1}', {"a": 1}),
    },
    "TokenizeBody": {
        "model": Refusal("gpt-9", "is not served"),
        "prompt": Effect("", lambda seen: seen.answer["count"], 1),
        "messages": Effect([MESSAGE], lambda seen: seen.answer["count"] > 20, True),
        "add_special_tokens": Effect(False, lambda seen: seen.answer["count"], 1, {"prompt": "H"}),
        "return_token_strs": Effect(True, lambda seen: seen.answer["token_strs"], [END, "H"], {"prompt": "H"}),
    },
    "DetokenizeBody": {
        "tokens": Effect([41, 42], lambda seen: len(seen.answer["prompt"]), 2),
        "model": Refusal("gpt-9", "is not served"),
    },
    "DrainBody": {"timeout_s": Elsewhere("tests.api.test_admin:test_a_worker_is_drained_and_taken_back")},
    "ChaosBody": {"spec": Elsewhere("tests.api.test_admin:test_chaos_is_ordered_seen_and_ended")},
}

_BACKGROUND = "tests.api.test_responses_background"
_HERE = "tests.api.test_every_parameter"

PARAMETERS: dict[Parameter, Case] = {
    **{(owner, name): case for owner, cases in _NESTED.items() for name, case in cases.items()},
    ("header", "x-request-id"): Elsewhere(f"{_HERE}:test_a_request_id_comes_back_from_every_route"),
    ("header", "x-runtime-timing"): Elsewhere(f"{_HERE}:test_stage_times_come_where_they_are_offered"),
    ("security", "key"): Elsewhere(f"{_HERE}:test_keys_open_what_asks_for_them"),
    ("security", "adminKey"): Elsewhere(f"{_HERE}:test_keys_open_what_asks_for_them"),
    ("GET /v1/responses/{id}", "id"): Elsewhere(f"{_BACKGROUND}:test_it_is_polled"),
    ("GET /v1/responses/{id}", "stream"): Elsewhere(f"{_BACKGROUND}:test_its_events_are_read_again"),
    ("GET /v1/responses/{id}", "starting_after"): Elsewhere(f"{_BACKGROUND}:test_its_events_are_read_again"),
    ("DELETE /v1/responses/{id}", "id"): Elsewhere(f"{_BACKGROUND}:test_a_deleted_response_is_gone"),
    ("POST /v1/responses/{id}/cancel", "id"): Elsewhere(f"{_BACKGROUND}:test_a_cancel_stops_it_where_it_is"),
    ("GET /v1/responses/{id}/input_items", "id"): Elsewhere(f"{_BACKGROUND}:test_input_items"),
    ("GET /v1/responses/{id}/input_items", "limit"): Elsewhere(f"{_BACKGROUND}:test_input_items"),
    ("GET /v1/responses/{id}/input_items", "order"): Elsewhere(f"{_BACKGROUND}:test_input_items"),
    ("GET /v1/responses/{id}/input_items", "after"): Elsewhere(f"{_BACKGROUND}:test_input_items"),
    ("GET /v1/models/{name}", "name"): Elsewhere("tests.api.test_edge:test_one_model"),
    ("POST /admin/workers/{name}/drain", "name"): Elsewhere(
        "tests.api.test_admin:test_a_worker_is_drained_and_taken_back"
    ),
    ("POST /admin/workers/{name}/resume", "name"): Elsewhere(
        "tests.api.test_admin:test_a_worker_is_drained_and_taken_back"
    ),
}


def all_cases(body_of: Callable[[str], str]) -> dict[Parameter, Any]:
    """These and those of the top-level fields of the other endpoints; `body_of` is the schema of a route's bodies."""
    return {(body_of(route), name): case for (route, name), case in CASES.items()} | PARAMETERS
