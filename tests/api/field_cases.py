"""For every field of every body: a request that shows its effect, or one that shows how it is refused.

`CASES` is keyed by route and field. An effect is what a look at the engine's request or at the answer shows with the
field and does not show without it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from actors.client import GenerateRequest
from tests.runtime.tiny_tokenizer import END, TURN_END, TURN_START

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
MESSAGE = {"role": "user", "content": "Hello"}
TOOL = {"type": "function", "function": {"name": "add", "parameters": {}}}


@dataclass(frozen=True)
class Seen:
    """One request's traces: what the engine was asked, and the answer, a list of events if it was streamed."""

    requests: Sequence[GenerateRequest]
    prompt: str
    answer: Any

    @property
    def request(self) -> GenerateRequest:
        """The only one, or the last."""
        return self.requests[-1]

    @property
    def choice(self) -> Any:
        return self.answer["choices"][0]


@dataclass(frozen=True)
class Effect:
    """`look` gives `expected` with the field at `value`, and something else without the field."""

    value: Any
    look: Callable[[Seen], Any]
    expected: Any
    others: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Refusal:
    """The field at `value` is a bad request that names it and says `words`."""

    value: Any
    words: str = "not supported"
    others: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Elsewhere:
    """The field needs more than one plain request to show: `test`, a module and a function of it, does."""

    test: str


Case = Effect | Refusal | Elsewhere


def sampling(name: str, value: Any, expected: Any = None) -> Effect:
    """An effect on the sampling parameters; the expected value is the client's own unless it is given."""
    return Effect(value, lambda seen: getattr(seen.request.params, name), value if expected is None else expected)


def _mask(*tokens: int) -> bytes:
    bits = sum(1 << token for token in tokens)
    return bits.to_bytes(4 * 13, "little")  # 400 tokens take 13 words


def _usage_events(seen: Seen) -> int:
    return sum(1 for event in seen.answer if isinstance(event, dict) and event.get("usage"))


def has_grammar(seen: Seen) -> bool:
    """Whether the answer has to be of some form (which, the tests of structured output look at)."""
    return getattr(seen.request.params.constraint, "grammar", None) is not None


def _text(seen: Seen) -> str:
    choice = seen.choice
    return str(choice["text"] if "text" in choice else choice["message"]["content"])


SHARED: dict[str, Case] = {
    "model": Effect("org/tiny-alias", lambda seen: seen.answer["model"], "org/tiny-alias"),
    "max_tokens": sampling("max_tokens", 3),
    "temperature": sampling("temperature", 0.25),
    "top_p": sampling("top_p", 0.5),
    "top_k": sampling("top_k", 7),
    "min_p": sampling("min_p", 0.125),
    "presence_penalty": sampling("presence_penalty", 1.5),
    "frequency_penalty": sampling("frequency_penalty", -0.5),
    "repetition_penalty": sampling("repetition_penalty", 1.25),
    "logit_bias": sampling("logit_bias", {"5": -100}, ((5, -100.0),)),
    "seed": sampling("seed", 77),
    "n": Effect(3, lambda seen: len(seen.answer["choices"]), 3),
    "stop": Effect([" is"], _text, "The answer"),
    "stop_token_ids": Effect([70], lambda seen: 70 in seen.request.params.stop_token_ids, True),
    "cache_salt": Effect("mine", lambda seen: seen.request.cache_salt, "mine"),
    "ignore_eos": sampling("stop_token_ids", True, ()),
    "min_tokens": sampling("min_tokens", 2),
    "stream": Effect(True, lambda seen: isinstance(seen.answer, list), True),
    "stream_options": Effect({"include_usage": True}, _usage_events, 1, {"stream": True}),
    "allowed_token_ids": sampling("allowed_mask", [0, 33, 399], _mask(0, 33, 399)),
    "prompt_logprobs": sampling("prompt_logprobs", 2),
    "include_stop_str_in_output": Effect(True, _text, "The answer is", {"stop": [" is"]}),
    "skip_special_tokens": Effect(False, lambda seen: seen.request.text.skip_special_tokens, False),
    "spaces_between_special_tokens": Refusal(True, "not supported where", {"skip_special_tokens": False}),
    "return_token_ids": Effect(True, lambda seen: len(seen.choice.get("token_ids", [])) > 0, True),
    "truncate_prompt_tokens": Effect(2, lambda seen: len(seen.request.prompt), 2),
    "priority": Effect(-3, lambda seen: seen.request.priority, -3),
    "timeout_s": Effect(1.5, lambda seen: seen.request.timeout_s, 1.5),
    "response_format": Effect({"type": "json_object"}, has_grammar, True),
    "structured_outputs": Effect({"choice": ["yes"]}, has_grammar, True),
    "guided_json": Effect({"type": "integer"}, has_grammar, True),
    "guided_regex": Effect("[0-9]+", has_grammar, True),
    "guided_choice": Effect(["yes", "no"], has_grammar, True),
    "guided_grammar": Effect('root ::= "yes"', has_grammar, True),
    "bad_words": Effect(["Hello"], lambda seen: getattr(seen.request.params.constraint, "bad_words", ()) != (), True),
    "thinking_token_budget": Elsewhere("tests.api.test_structured:test_a_budget_needs_a_model_that_thinks"),
    "use_beam_search": Refusal(True),
    "logits_processors": Refusal(["x"]),
    "prompt_embeds": Refusal("AAAA"),
}

_CHAT: dict[str, Case] = {
    "messages": Effect([MESSAGE], lambda seen: "\nHello<" in seen.prompt, True),
    "max_completion_tokens": sampling("max_tokens", 4),
    "logprobs": Effect(True, lambda seen: len((seen.choice["logprobs"] or {}).get("content", [])) > 0, True),
    "top_logprobs": Effect(
        3, lambda seen: len(seen.choice["logprobs"]["content"][0]["top_logprobs"]), 3, {"logprobs": True}
    ),
    "return_tokens_as_token_ids": Effect(
        True,
        lambda seen: seen.choice["logprobs"]["content"][0]["token"].startswith("token_id:"),
        True,
        {"logprobs": True},
    ),
    "tools": Effect([TOOL], lambda seen: "[add]" in seen.prompt, True),
    "tool_choice": Effect("none", lambda seen: "[add]" in seen.prompt, False, {"tools": [TOOL]}),
    "reasoning_effort": Effect("low", lambda seen: "effort=low" in seen.prompt, True),
    "add_special_tokens": Effect(True, lambda seen: seen.prompt.startswith(END), True),
    "add_generation_prompt": Effect(False, lambda seen: seen.prompt.endswith(f"{TURN_END}\n"), True),
    "continue_final_message": Effect(
        True,
        lambda seen: seen.prompt.endswith(f"{TURN_START}assistant\nIt is"),
        True,
        {"messages": [MESSAGE, {"role": "assistant", "content": "It is"}]},
    ),
    "chat_template_kwargs": Effect({"enable_thinking": False}, lambda seen: "no thinking" in seen.prompt, True),
    "chat_template": Refusal("{{ messages }}"),
    "documents": Refusal([{"text": "a"}]),
    "functions": Effect([TOOL["function"]], lambda seen: "[add]" in seen.prompt, True),
    "function_call": Effect("none", lambda seen: "[add]" in seen.prompt, False, {"functions": [TOOL["function"]]}),
    "parallel_tool_calls": Elsewhere("tests.api.test_tools:test_one_call_at_most"),
    "include_reasoning": Elsewhere("tests.api.test_tools:test_reasoning_can_be_left_out"),
    "echo": Refusal(True),
    "audio": Refusal({"voice": "x"}),
    "modalities": Refusal(["text", "audio"]),
    "web_search_options": Refusal({}),
}

_COMPLETIONS: dict[str, Case] = {
    "prompt": Effect("Bye", lambda seen: seen.prompt.endswith("Bye"), True),
    "logprobs": Effect(2, lambda seen: len((seen.choice["logprobs"] or {}).get("tokens", [])) > 0, True),
    "return_tokens_as_token_ids": Effect(
        True, lambda seen: seen.choice["logprobs"]["tokens"][0].startswith("token_id:"), True, {"logprobs": 0}
    ),
    "best_of": Refusal(2, "only a value equal to n (1)"),
    "echo": Effect(True, lambda seen: _text(seen).startswith("Hi there, "), True, {"prompt": "Hi there, "}),
    "suffix": Refusal("x"),
    "add_special_tokens": Effect(False, lambda seen: seen.prompt.startswith(END), False),
}

CASES: dict[tuple[str, str], Case] = {
    **{(route, name): case for name, case in SHARED.items() for route in (CHAT, COMPLETIONS)},
    **{(CHAT, name): case for name, case in _CHAT.items()},
    **{(COMPLETIONS, name): case for name, case in _COMPLETIONS.items()},
}
