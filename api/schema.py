"""The JSON bodies that clients send: which fields are known and of which types.

Decoding checks types only; `validate` checks values. Every field may be absent or null. Fields that are not
listed are ignored, for clients send many that do not concern a server; those at the top of a body are logged at
level INFO, each name once per process, but for those in `IGNORED`, which every client sends. Fields that would change
the answer but are not served are listed in `UNSUPPORTED` and refused by name.
"""

import functools
import logging
import re
import threading
from typing import Any, TypeVar

import msgspec

from runtime.errors import RequestError

logger = logging.getLogger(__name__)


class StreamOptions(msgspec.Struct):
    """`stream_options`."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class StructuredOutputs(msgspec.Struct, forbid_unknown_fields=True):
    """`structured_outputs`: exactly one key says what the answer looks like."""

    json: str | bool | dict[str, Any] | None = None
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None
    json_object: bool | None = None
    structural_tag: str | dict[str, Any] | None = None


class SamplingBody(msgspec.Struct, kw_only=True):
    """Fields that both endpoints share."""

    model: str | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    seed: int | None = None
    n: int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    cache_salt: str | None = None
    ignore_eos: bool | None = None
    min_tokens: int | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    allowed_token_ids: list[int] | None = None
    prompt_logprobs: int | None = None
    include_stop_str_in_output: bool | None = None
    skip_special_tokens: bool | None = None
    spaces_between_special_tokens: bool | None = None
    return_token_ids: bool | None = None
    return_tokens_as_token_ids: bool | None = None
    truncate_prompt_tokens: int | None = None
    add_special_tokens: bool | None = None
    priority: int | None = None
    timeout_s: float | None = None
    response_format: dict[str, Any] | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: str | bool | dict[str, Any] | None = None
    guided_regex: str | None = None
    guided_choice: list[str] | None = None
    guided_grammar: str | None = None
    bad_words: list[str] | None = None
    thinking_token_budget: int | None = None
    use_beam_search: Any = None
    logits_processors: Any = None
    prompt_embeds: Any = None


class ContentPart(msgspec.Struct):
    """One part of a message's content; only text is served."""

    type: str
    text: str | None = None


class CalledFunction(msgspec.Struct):
    """Name and JSON-text arguments of a call that the assistant made earlier."""

    name: str
    arguments: str | dict[str, Any] = ""


class ToolCall(msgspec.Struct):
    """A call that the assistant made earlier in the conversation."""

    function: CalledFunction
    id: str | None = None
    type: str = "function"


class ChatMessage(msgspec.Struct):
    """One turn of the conversation."""

    role: str
    content: str | list[ContentPart] | None = None
    name: str | None = None
    tool_calls: list[ToolCall] | None = None
    function_call: CalledFunction | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None


class ChatBody(SamplingBody, kw_only=True):
    """Body of `/v1/chat/completions`."""

    messages: list[ChatMessage] | None = None
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    reasoning_effort: str | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    chat_template: Any = None
    documents: Any = None
    parallel_tool_calls: bool | None = None
    functions: list[dict[str, Any]] | None = None
    function_call: str | dict[str, Any] | None = None
    include_reasoning: bool | None = None
    echo: Any = None
    audio: Any = None
    modalities: list[str] | None = None
    web_search_options: Any = None


class CompletionBody(SamplingBody, kw_only=True):
    """Body of `/v1/completions`."""

    prompt: str | list[str | int | list[int]] | None = None
    logprobs: int | None = None
    best_of: int | None = None
    echo: bool | None = None
    suffix: str | None = None


UNSUPPORTED = (
    "use_beam_search", "logits_processors", "prompt_embeds", "suffix",
    "chat_template", "documents", "audio", "web_search_options",
)  # fmt: skip

IGNORED = frozenset({
    "user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention",
    "prompt_cache_options", "verbosity", "session_id", "prediction",
})  # fmt: skip
"""Fields that tell of the client or of a service's accounts, or that may save it time: they change no answer here."""

Body = TypeVar("Body", bound=SamplingBody)

_PATH = re.compile(r" - at `\$\.?(.*)`$")
_JSON_NAMES = {"int": "integer", "float": "number", "str": "string", "bool": "boolean"}
_MAX_LOGGED = 1000
_MAX_LOGGED_CHARS = 100
_logged: set[str] = set()
_logged_lock = threading.Lock()


def decode_body(data: bytes, body_type: type[Body]) -> Body:
    """Decodes a request's body, or tells which field is of a wrong type."""
    try:
        data.decode()
        body: Body = _decoder(body_type).decode(data)
    except msgspec.ValidationError as error:
        raise _type_error(str(error)) from error
    except UnicodeDecodeError as error:
        raise RequestError(f"the body is not UTF-8: {error}", code="invalid_json") from error
    except RecursionError as error:
        raise RequestError("the body is nested too deeply", code="invalid_json") from error
    except msgspec.DecodeError as error:
        raise RequestError(f"the body is not valid JSON: {error}", code="invalid_json") from error
    if logger.isEnabledFor(logging.INFO):
        _log_unknown(data, body_type)
    return body


@functools.cache
def _decoder(body_type: type[SamplingBody]) -> msgspec.json.Decoder[Any]:
    return msgspec.json.Decoder(body_type)


def _type_error(text: str) -> RequestError:
    """Rewrites a decoder's message into the words of JSON, naming the field."""
    path = _PATH.search(text)
    param = path[1].replace("[...]", "") if path else ""
    reason = _PATH.sub("", text)
    reason = re.sub(r"`([^`]*)`", lambda match: " or ".join(_json_name(name) for name in match[1].split(" | ")), reason)
    return RequestError(
        f"{param or 'the body'}: {reason[:1].lower()}{reason[1:]}", param=param or None, code="invalid_type"
    )


def _json_name(name: str) -> str:
    return _JSON_NAMES.get(name, name)


def _log_unknown(data: bytes, body_type: type[SamplingBody]) -> None:
    """Logs each unknown field's name, cut short, once per process; after very many names it logs no more."""
    known = body_type.__struct_fields__
    sent = msgspec.json.decode(data, type=dict[str, msgspec.Raw])
    with _logged_lock:
        for name in (name[:_MAX_LOGGED_CHARS] for name in sent if name not in known and name not in IGNORED):
            if name not in _logged and len(_logged) < _MAX_LOGGED:
                _logged.add(name)
                logger.info("ignoring the unknown request field %r", name)
