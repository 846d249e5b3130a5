"""`/v1/chat/completions`: messages become a prompt, deltas become an assistant's message."""

from typing import Any

import msgspec
import orjson

from actors.messages import Delta
from api.answer import Answer, Choice
from api.checks import whole_in_range
from api.logprobs import chat_logprobs
from api.model import ApiSettings, ServedModel
from api.schema import ChatBody, ChatMessage, ToolCall, decode_body
from api.validate import Job, MaxTokens, check_model, encode_prompt, make_job
from runtime.errors import RequestError
from runtime.sampling_params import MAX_LOGPROBS

ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant", "tool": "tool"}


def prepare_chat(data: bytes, model: ServedModel, settings: ApiSettings) -> Job:
    """From a request's bytes to a job. Runs in a worker thread."""
    body = decode_body(data, ChatBody)
    check_model(body.model, model)
    logprobs = _num_logprobs(body)
    prompt = encode_prompt("messages", _render(body, model), model)
    if body.max_completion_tokens is not None:
        max_tokens = MaxTokens(param="max_completion_tokens", asked=body.max_completion_tokens)
    else:
        max_tokens = MaxTokens(param="max_tokens", asked=body.max_tokens)
    return make_job("chatcmpl", body, [prompt], max_tokens, logprobs, model, settings)


def _num_logprobs(body: ChatBody) -> int | None:
    top = whole_in_range("top_logprobs", body.top_logprobs, 0, MAX_LOGPROBS, 0)
    if body.logprobs:
        return top
    if top:
        raise RequestError("top_logprobs: only allowed when logprobs is true", param="top_logprobs")
    return None


def _render(body: ChatBody, model: ServedModel) -> str:
    """The prompt text. Templates disagree whether a call's arguments are an object or its JSON text: try both."""
    if not body.messages:
        raise RequestError("messages: at least one message is needed", param="messages")
    tools = _tools(body)
    turns = [_turn(index, message) for index, message in enumerate(body.messages)]
    if not any("tool_calls" in turn for turn in turns):
        return model.tokenizer.render_chat(turns, tools)
    try:
        return model.tokenizer.render_chat([_with_parsed_arguments(turn) for turn in turns], tools)
    except RequestError:
        return model.tokenizer.render_chat(turns, tools)


def _turn(index: int, message: ChatMessage) -> dict[str, Any]:
    """A message as templates expect it: content as one text, absent fields left out."""
    param = f"messages[{index}]"
    role = ROLES.get(message.role)
    if role is None:
        raise RequestError(
            f"{param}.role: must be one of {', '.join(ROLES)}, got {message.role[:40]!r}", param=f"{param}.role"
        )
    content = _text(f"{param}.content", message)
    if content is None and not (role == "assistant" and message.tool_calls):
        raise RequestError(f"{param}.content: needed for role {role}", param=f"{param}.content")
    turn: dict[str, Any] = {"role": role, "content": content}
    if message.tool_calls:
        turn["tool_calls"] = [_call(call) for call in message.tool_calls]
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


def _call(call: ToolCall) -> dict[str, Any]:
    arguments = call.function.arguments
    text = arguments if isinstance(arguments, str) else orjson.dumps(arguments).decode()
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


def _tools(body: ChatBody) -> list[dict[str, Any]] | None:
    """Tools for the template. With `tool_choice` "none" the model does not learn of them."""
    if body.tool_choice not in (None, "none", "auto"):
        raise RequestError(
            'tool_choice: only "none" and "auto" are supported yet', param="tool_choice", code="unsupported_parameter"
        )
    for index, tool in enumerate(body.tools or []):
        function = tool.get("function")
        if tool.get("type") != "function" or not isinstance(function, dict) or not function.get("name"):
            raise RequestError(
                f'tools[{index}]: must be {{"type": "function", "function": {{"name": ...}}}}',
                param=f"tools[{index}]",
            )
    return None if body.tool_choice == "none" else body.tools


class ChatAnswer(Answer):
    """Answers in the chat shape."""

    whole_object = "chat.completion"
    chunk_object = "chat.completion.chunk"

    def __init__(self, job: Job, model: ServedModel) -> None:
        super().__init__(job, model)
        self._begun: set[int] = set()

    def whole_choice(self, index: int, choice: Choice) -> dict[str, Any]:
        """A finished choice with its message."""
        return {
            "index": index,
            "message": {"role": "assistant", "content": "".join(choice.texts), "refusal": None},
            "logprobs": self._logprobs(choice.tokens),
            "finish_reason": choice.finish,
            "stop_reason": self.stop_reason(choice.stop_match),
        }

    def choice_chunks(self, index: int, delta: Delta) -> list[dict[str, Any]]:
        """The delta's chunk; before a choice's first, the one that gives the role."""
        chunks = []
        if index not in self._begun:
            self._begun.add(index)
            role = {"role": "assistant", "content": ""}
            chunks.append({"index": index, "delta": role, "logprobs": None, "finish_reason": None})
        chunk: dict[str, Any] = {
            "index": index,
            "delta": {"content": delta.text},
            "logprobs": self._logprobs(delta.tokens),
            "finish_reason": delta.finish,
        }
        if delta.finish is not None:
            chunk["stop_reason"] = self.stop_reason(delta.stop_match)
        return [*chunks, chunk]

    def _logprobs(self, tokens: Any) -> dict[str, Any] | None:
        return None if self.job.logprobs is None else chat_logprobs(self.model.tokenizer, tokens)
