"""`/v1/chat/completions`: messages become a prompt, deltas become an assistant's message."""

from typing import Any

import msgspec

from actors.messages import Delta, FinishReason
from api.answer import Answer, Choice
from api.chat_prompt import template_options
from api.checks import whole_in_range
from api.logprobs import chat_logprobs
from api.model import ApiSettings, ServedModel
from api.output import demanded_grammar, with_output
from api.parsers.parts import Part, Reasoning
from api.parts import ChoiceParts, part_delta, whole_message
from api.schema import ChatBody, ChatMessage, ToolCall, decode_body
from api.tools import plan_tools
from api.truncation import resolve_cut
from api.validate import Job, MaxTokens, check_model, encode_prompt, make_job
from runtime.errors import RequestError
from runtime.sampling_params import MAX_LOGPROBS

ROLES = {
    "system": "system", "developer": "system", "user": "user", "assistant": "assistant", "tool": "tool",
    "function": "tool",
}  # fmt: skip


def prepare_chat(data: bytes, model: ServedModel, settings: ApiSettings) -> Job:
    """From a request's bytes to a job. Runs in a worker thread."""
    return chat_job(decode_body(data, ChatBody), model, settings)


def chat_job(body: ChatBody, model: ServedModel, settings: ApiSettings) -> Job:
    """From a chat's body to a job."""
    check_model(body.model, model)
    logprobs = _num_logprobs(body)
    plan = plan_tools(body.tools, body.tool_choice, body.functions, body.function_call, body.parallel_tool_calls)
    text = _render(body, list(plan.offered) or None, model)
    if body.max_completion_tokens is not None:
        max_tokens = MaxTokens(param="max_completion_tokens", asked=body.max_completion_tokens)
    else:
        max_tokens = MaxTokens(param="max_tokens", asked=body.max_tokens)
    prompt = encode_prompt(
        "messages",
        text,
        model,
        add_special_tokens=bool(body.add_special_tokens),
        cut=resolve_cut(body.truncate_prompt_tokens, max_tokens.asked, model),
    )
    grammar = demanded_grammar(plan, body, model)
    job = make_job("chatcmpl", body, [prompt], max_tokens, logprobs, model, settings, grammar=grammar)
    job = msgspec.structs.replace(job, shows_reasoning=body.include_reasoning is not False)
    return with_output(job, plan, text, model)


def _num_logprobs(body: ChatBody) -> int | None:
    top = whole_in_range("top_logprobs", body.top_logprobs, 0, MAX_LOGPROBS, 0)
    if body.logprobs:
        return top
    if top:
        raise RequestError("top_logprobs: only allowed when logprobs is true", param="top_logprobs")
    return None


def _render(body: ChatBody, tools: list[dict[str, Any]] | None, model: ServedModel) -> str:
    """The prompt text. Templates disagree whether a call's arguments are an object or its JSON text: try both."""
    if not body.messages:
        raise RequestError("messages: at least one message is needed", param="messages")
    options = template_options(body)
    turns = [_turn(index, message) for index, message in enumerate(body.messages)]
    if not any("tool_calls" in turn for turn in turns):
        return model.tokenizer.render_chat(turns, tools, options)
    try:
        return model.tokenizer.render_chat([_with_parsed_arguments(turn) for turn in turns], tools, options)
    except RequestError:
        return model.tokenizer.render_chat(turns, tools, options)


def _turn(index: int, message: ChatMessage) -> dict[str, Any]:
    """A message as templates expect it: content as one text, absent fields left out."""
    param = f"messages[{index}]"
    role = ROLES.get(message.role)
    if role is None:
        raise RequestError(
            f"{param}.role: must be one of {', '.join(ROLES)}, got {message.role[:40]!r}", param=f"{param}.role"
        )
    content = _text(f"{param}.content", message)
    calls = message.tool_calls or ([ToolCall(message.function_call)] if message.function_call else [])
    if content is None and not (role == "assistant" and calls):
        raise RequestError(f"{param}.content: needed for role {role}", param=f"{param}.content")
    turn: dict[str, Any] = {"role": role, "content": content}
    if calls:
        turn["tool_calls"] = [_call(f"{param}.tool_calls[{number}]", call) for number, call in enumerate(calls)]
    extras = {
        "name": message.name,
        "tool_call_id": message.tool_call_id,
        "reasoning_content": message.reasoning_content or message.reasoning,
    }
    return turn | {key: value for key, value in extras.items() if value is not None}


def _text(param: str, message: ChatMessage) -> str | None:
    """Content as one text: parts are joined as they are."""
    if message.content is None or isinstance(message.content, str):
        return message.content
    texts = []
    for number, part in enumerate(message.content):
        if part.type != "text":
            raise RequestError(
                f"{param}[{number}].type: only text parts are supported, got {part.type[:40]!r}",
                param=f"{param}[{number}].type",
            )
        if part.text is None:
            raise RequestError(f"{param}[{number}].text: missing", param=f"{param}[{number}].text")
        texts.append(part.text)
    return "".join(texts)


def _call(param: str, call: ToolCall) -> dict[str, Any]:
    if call.type != "function":
        raise RequestError(f"{param}.type: only functions are called, got {call.type[:40]!r}", param=f"{param}.type")
    arguments = call.function.arguments
    text = arguments if isinstance(arguments, str) else msgspec.json.encode(arguments).decode()
    return {"id": call.id, "type": call.type, "function": {"name": call.function.name, "arguments": text}}


def _with_parsed_arguments(turn: dict[str, Any]) -> dict[str, Any]:
    """The turn with its calls' arguments as objects, where they are valid JSON."""
    calls = [
        {**call, "function": {**call["function"], "arguments": _parsed(call["function"]["arguments"])}}
        for call in turn.get("tool_calls", [])
    ]
    return {**turn, "tool_calls": calls} if calls else turn


def _parsed(arguments: str) -> Any:
    try:
        return msgspec.json.decode(arguments)
    except (msgspec.DecodeError, RecursionError):
        return arguments


class ChatAnswer(Answer):
    """Answers in the chat shape."""

    whole_object = "chat.completion"
    chunk_object = "chat.completion.chunk"

    def __init__(self, job: Job, model: ServedModel) -> None:
        super().__init__(job, model)
        self._begun: set[int] = set()
        self._parts = [ChoiceParts(job.make_parser()) for _ in self._choices]
        self._whole: list[list[Part]] = [[] for _ in self._choices]
        self._is_legacy = job.call_shape == "function_call"

    def add(self, prompt: int, delta: Delta) -> None:
        """Takes a delta for the whole answer."""
        super().add(prompt, delta)
        index = self.index(prompt, delta.choice)
        self._whole[index] += self._parts[index].add(self._take(prompt, delta))

    def whole_choice(self, index: int, choice: Choice) -> dict[str, Any]:
        """A finished choice with its message."""
        return {
            "index": index,
            "message": whole_message(
                self._whole[index], shows_reasoning=self.job.shows_reasoning, is_legacy=self._is_legacy
            ),
            "logprobs": self._logprobs(choice.tokens),
            "finish_reason": self._finish(index, choice.finish),
            **self.stop_fields(choice.stop_match),
            **self.token_fields(choice.tokens),
        }

    def choice_chunks(self, index: int, delta: Delta) -> list[dict[str, Any]]:
        """A chunk for each part of the delta; before a choice's first, the one that gives the role.

        The last brings the delta's logprobs and the choice's end. Where calls are possible, what has no content yet
        has none at all, so that an answer of calls alone adds up to null.
        """
        empty: dict[str, Any] = {"content": ""} if self.job.call_shape == "none" else {}
        parts = [part_delta(part, is_legacy=self._is_legacy) for part in self._shown(self._parts[index].add(delta))]
        *before, last = parts or [empty]
        if index not in self._begun:
            self._begun.add(index)
            before.insert(0, {"role": "assistant", "content": None} | empty)
        chunk: dict[str, Any] = {
            "index": index,
            "delta": last,
            "logprobs": self._logprobs(delta.tokens),
            "finish_reason": self._finish(index, delta.finish),
            **self.token_fields(delta.tokens),
        }
        if delta.finish is not None:
            chunk |= self.stop_fields(delta.stop_match)
        return [*({"index": index, "delta": part, "logprobs": None, "finish_reason": None} for part in before), chunk]

    def usage_details(self) -> dict[str, Any]:
        """How many of the tokens were reasoning, for models that reason."""
        if self.model.forms.reasoning is None:
            return {}
        num_tokens = sum(parts.num_reasoning_tokens for parts in self._parts)
        return {"completion_tokens_details": {"reasoning_tokens": num_tokens}}

    def _shown(self, parts: list[Part]) -> list[Part]:
        return parts if self.job.shows_reasoning else [part for part in parts if not isinstance(part, Reasoning)]

    def _finish(self, index: int, finish: FinishReason | None) -> str | None:
        return self._parts[index].finish_reason(finish, is_legacy=self._is_legacy)

    def _logprobs(self, tokens: Any) -> dict[str, Any] | None:
        if self.job.logprobs is None:
            return None
        return chat_logprobs(self.model.tokenizer, tokens, as_ids=self.job.tokens_as_ids)
