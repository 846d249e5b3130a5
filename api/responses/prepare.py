"""From a body to what runs: a chat's job, the response object as it begins, and what is to be kept.

Runs in a worker thread. All that chat has too is checked by chat's own code; its refusals are put into this
endpoint's words.
"""

import re
from collections.abc import Sequence
from typing import Any, Literal

import msgspec

from api.chat import chat_job
from api.chat_prompt import REASONING_EFFORTS
from api.checks import shown as shown_number
from api.checks import whole_in_range
from api.model import ApiSettings, ServedModel
from api.responses.conversation import Turn, fit, to_turns
from api.responses.items import FindItem, InputText, Item, MessageItem, new_id, parse_input, shown
from api.responses.objects import ReasoningShown, ResponseObject
from api.responses.schema import REFUSED, Reasoning, ResponsesBody
from api.responses.store import Block, Kept
from api.responses.tools import chat_tool_choice, chat_tools, shown_choice, shown_tools
from api.schema import ChatBody, SamplingBody
from api.validate import Job
from runtime.errors import RequestError
from runtime.sampling_params import MAX_LOGPROBS

LOGPROBS = "message.output_text.logprobs"
ENCRYPTED = "reasoning.encrypted_content"
EFFORTS = REASONING_EFFORTS
SUMMARIES = ("auto", "concise", "detailed")
FORMATS = ("text", "json_object", "json_schema")
VERBOSITIES = ("low", "medium", "high")
TIERS = ("auto", "default", "flex", "scale", "priority", "fast")
MAX_METADATA = 16
MAX_METADATA_KEY = 64
MAX_METADATA_VALUE = 512
MAX_LABEL_CHARS = {"user": 512, "safety_identifier": 64, "prompt_cache_key": 512}

_FORMAT_KEYS = ("type", "name", "description", "schema", "strict")
_LEVELS = 16
_TOO_LONG = "context_length_exceeded"


class Prepared(msgspec.Struct, frozen=True, kw_only=True):
    """A response that can run. `input` is its whole conversation, the own items last."""

    job: Job
    response: ResponseObject
    input: tuple[Block, ...]


def prepare(
    body: ResponsesBody, previous: Kept | None, find: FindItem, model: ServedModel, settings: ApiSettings
) -> Prepared:
    """Checks everything; `previous` is what the body continues, `find` looks up what its input refers to."""
    _refuse(body)
    keep = _keep(body, can_keep=settings.response_store_size > 0)
    own = parse_input(body.input, find)
    history = previous.conversation if previous is not None else ()
    turns = to_turns(_named(body.instructions, history, own))
    job = _job(body, turns, model, settings)
    response_id = new_id("resp")
    request = msgspec.structs.replace(job.requests[0], request=response_id)
    job = msgspec.structs.replace(job, id=response_id, requests=(request,))
    return Prepared(job=job, response=_begun(body, job, keep), input=(*history, Block.of_input(own)))


def _refuse(body: ResponsesBody) -> None:
    for name, reason in REFUSED.items():
        value = getattr(body, name, None)
        if value not in (None, "", [], {}) and value is not False:
            raise RequestError(f"{name}: {reason}", param=name, code="unsupported_parameter")
    if body.n not in (None, 1):
        raise RequestError(f"n: must be 1, got {shown_number(body.n)}", param="n")
    options = body.stream_options
    for name in ("include_obfuscation", "continuous_usage_stats"):
        if options is not None and getattr(options, name):
            param = f"stream_options.{name}"
            raise RequestError(f"{param}: not an option of this endpoint", param=param, code="unsupported_parameter")
    _one_of("truncation", body.truncation, ("auto", "disabled"))
    _one_of("service_tier", body.service_tier, TIERS)
    for name in body.include or []:
        _one_of("include", name, (LOGPROBS, ENCRYPTED))
    if body.text is not None:
        _one_of("text.verbosity", body.text.verbosity, VERBOSITIES)
    _check_reasoning(body.reasoning or Reasoning())
    _check_shown("tools", body.tools)
    _check_shown("tool_choice", body.tool_choice)
    _check_shown("text", body.text)
    _check_labels(body)
    whole_in_range("max_tool_calls", body.max_tool_calls, 1, 2**31 - 1, 1)


def _one_of(param: str, value: str | None, allowed: Sequence[str]) -> None:
    if value is not None and value not in allowed:
        raise RequestError(f"{param}: must be one of {', '.join(allowed)}, got {shown(value)}", param=param)


def _check_reasoning(reasoning: Reasoning) -> None:
    _one_of("reasoning.effort", reasoning.effort, EFFORTS)
    _one_of("reasoning.summary", reasoning.summary, SUMMARIES)
    _one_of("reasoning.generate_summary", reasoning.generate_summary, SUMMARIES)
    _one_of("reasoning.context", reasoning.context, ("auto",))
    _one_of("reasoning.mode", reasoning.mode, ("standard",))


def _check_shown(param: str, value: object) -> None:
    """Refuses what could not be shown again, a few levels deeper than it came."""
    for _ in range(_LEVELS):
        value = [value]
    try:
        msgspec.json.encode(value)
    except (OverflowError, RecursionError) as error:
        raise RequestError(f"{param}: holds a number beyond 64 bits, or is nested too deeply", param=param) from error


def _check_labels(body: ResponsesBody) -> None:
    """What is only shown again: short enough to be kept."""
    metadata = body.metadata or {}
    if len(metadata) > MAX_METADATA:
        raise RequestError(f"metadata: at most {MAX_METADATA} pairs, got {len(metadata)}", param="metadata")
    for key, value in metadata.items():
        if len(key) > MAX_METADATA_KEY or len(value) > MAX_METADATA_VALUE:
            raise RequestError(
                f"metadata: keys have at most {MAX_METADATA_KEY} characters and values {MAX_METADATA_VALUE}, got"
                f" {len(key)} and {len(value)}",
                param="metadata",
            )
    for name, limit in MAX_LABEL_CHARS.items():
        value = getattr(body, name) or ""
        if len(value) > limit:
            raise RequestError(f"{name}: at most {limit} characters, got {len(value)}", param=name)


def _keep(body: ResponsesBody, *, can_keep: bool) -> bool:
    """Whether the response is kept when it is over."""
    keep = can_keep and body.store is not False
    if body.background and not keep:
        reason = "this server keeps no responses" if not can_keep else "needs store to be true"
        raise RequestError(f"background: {reason}", param="background")
    return keep


def _named(instructions: str | None, history: Sequence[Block], own: Sequence[Item]) -> list[tuple[str, Item]]:
    """The whole conversation; errors call an item by the field that it came from."""
    named: list[tuple[str, Item]] = []
    if instructions:
        item = MessageItem(id=new_id("msg"), role="system", content=(InputText(instructions),))
        named.append(("instructions", item))
    named += [("previous_response_id", item) for block in history for item in block.items()]
    return named + [(f"input[{index}]", item) for index, item in enumerate(own)]


def _job(body: ResponsesBody, turns: list[Turn], model: ServedModel, settings: ApiSettings) -> Job:
    """The job of a chat with the same messages; `truncation` drops the oldest of them where they are too many."""

    def make(turns: Sequence[Turn]) -> Job:
        return chat_job(_chat_body(body, [turn.message for turn in turns]), model, settings)

    def fits(turns: Sequence[Turn]) -> bool:
        try:
            make(turns)
        except RequestError as error:
            return error.code != _TOO_LONG
        return True

    try:
        if body.truncation == "auto":
            turns = fit(turns, fits)
        return make(turns)
    except RequestError as error:
        raise _in_own_words(error, turns) from error


def _chat_body(body: ResponsesBody, messages: list[Any]) -> ChatBody:
    """The same request as a chat: what both have under one name goes over as it is."""
    shared = {name: getattr(body, name) for name in SamplingBody.__struct_fields__}
    logprobs = LOGPROBS in (body.include or []) or bool(body.top_logprobs)
    own = {
        "messages": messages,
        "max_completion_tokens": body.max_output_tokens,
        "logprobs": logprobs,
        "top_logprobs": whole_in_range("top_logprobs", body.top_logprobs, 0, MAX_LOGPROBS, 0) if logprobs else None,
        "tools": chat_tools(body.tools, body.tool_choice),
        "tool_choice": chat_tool_choice(body.tool_choice),
        "parallel_tool_calls": body.parallel_tool_calls,
        "response_format": _response_format(body),
        "reasoning_effort": body.reasoning.effort if body.reasoning is not None else None,
        "chat_template_kwargs": body.chat_template_kwargs,
    }
    return ChatBody(**(shared | own))


def _response_format(body: ResponsesBody) -> dict[str, Any] | None:
    """`text.format` in chat's shape: a schema's name, text and strictness one level deeper."""
    given = _format(body)
    if given is None or given["type"] != "json_schema":
        return given
    return {"type": "json_schema", "json_schema": {key: value for key, value in given.items() if key != "type"}}


def _format(body: ResponsesBody) -> dict[str, Any] | None:
    """`text.format` without the keys that it does not have."""
    given = body.text.format if body.text is not None else None
    if given is None:
        return None
    if given.get("type") not in FORMATS:
        raise RequestError(
            f"text.format.type: must be one of {', '.join(FORMATS)}, got {shown(given.get('type'))}",
            param="text.format.type",
        )
    if given["type"] == "json_schema":
        for key, kind in (("name", str), ("schema", dict)):
            if not isinstance(given.get(key), kind):
                words = "a string" if kind is str else "an object"
                raise RequestError(
                    f"text.format.{key}: must be {words}, got {shown(given.get(key))}", param=f"text.format.{key}"
                )
    return {key: given[key] for key in _FORMAT_KEYS if given.get(key) is not None}


_OWN_WORDS = (
    (re.compile(r"\bmax_completion_tokens\b"), "max_output_tokens"),
    (re.compile(r"\bresponse_format(\.json_schema)?\b"), "text.format"),
    (re.compile(r"\breasoning_effort\b"), "reasoning.effort"),
    (re.compile(r"(\btools\[\d+\])\.function\b"), r"\1"),
)
_MESSAGE = re.compile(r"\bmessages\[(\d+)\]")


def _in_own_words(error: RequestError, turns: Sequence[Turn]) -> RequestError:
    """A refusal of chat's that names this endpoint's fields."""

    def own(text: str) -> str:
        text = _MESSAGE.sub(lambda match: turns[int(match[1])].param, text)
        for pattern, replacement in _OWN_WORDS:
            text = pattern.sub(replacement, text)
        return text

    if error.param is None:
        return error
    param = "input" if error.param == "messages" else own(error.param)
    message = error.message
    for old, new in {error.param: param}.items():
        message = message.replace(old, new, 1)
    return RequestError(own(message), param=param, status=error.status, code=error.code)


def _begun(body: ResponsesBody, job: Job, keep: bool) -> ResponseObject:
    """The response before its first token."""
    params = job.requests[0].params
    reasoning = body.reasoning or Reasoning()
    truncation: Literal["auto", "disabled"] = "auto" if body.truncation == "auto" else "disabled"
    text: dict[str, Any] = {"format": _format(body) or {"type": "text"}}
    if body.text is not None and body.text.verbosity is not None:
        text["verbosity"] = body.text.verbosity
    return ResponseObject(
        id=job.id,
        created_at=job.created,
        status="in_progress",
        background=bool(body.background),
        instructions=body.instructions,
        max_output_tokens=body.max_output_tokens,
        max_tool_calls=body.max_tool_calls,
        metadata=body.metadata or {},
        model=job.model,
        parallel_tool_calls=body.parallel_tool_calls is not False,
        previous_response_id=body.previous_response_id,
        prompt_cache_key=body.prompt_cache_key,
        reasoning=ReasoningShown(effort=reasoning.effort, summary=reasoning.summary or reasoning.generate_summary),
        safety_identifier=body.safety_identifier,
        store=keep,
        temperature=params.temperature,
        text=text,
        tool_choice=shown_choice(body.tool_choice),
        tools=shown_tools(body.tools),
        top_logprobs=body.top_logprobs or 0,
        top_p=params.top_p,
        truncation=truncation,
        user=msgspec.UNSET if body.user is None else body.user,
    )
