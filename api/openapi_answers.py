"""The shapes of answers, for `/openapi.json` alone: the routes build their answers as plain dictionaries.

Keys with a default may be absent; no others are ever sent.
"""

from typing import Literal

import msgspec

from actors.messages import WorkerState
from api.model import ServerState
from api.responses.items import Item
from runtime.topology import Role

FinishReason = Literal["stop", "length", "tool_calls"]


class _Closed(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """A JSON object without further keys."""


class ErrorObject(_Closed, kw_only=True):
    """What went wrong; `param` names the field that was refused."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(_Closed, kw_only=True):
    """The body of every failure."""

    error: ErrorObject


class PromptTokensDetails(_Closed, kw_only=True):
    """Of the prompt's tokens, those that came from the prefix cache."""

    cached_tokens: int


class Usage(_Closed, kw_only=True):
    """Token counts of one request, all its choices together."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails | None = None


class ChoiceTiming(_Closed, kw_only=True):
    """Where one choice's time went, in seconds."""

    index: int
    attempts: int
    prefill_worker: str | None
    decode_worker: str | None
    queue_s: float
    prefill_s: float
    transfer_s: float
    handoff_s: float
    decode_s: float
    total_s: float


class Timing(_Closed, kw_only=True):
    """Stage times, for requests with `x-runtime-timing: 1`."""

    choices: list[ChoiceTiming]


class Alternative(_Closed, kw_only=True):
    """A token that could have been chosen."""

    token: str
    logprob: float
    bytes: list[int] | None


class TokenLogprob(Alternative, kw_only=True):
    """A chosen token and its alternatives."""

    top_logprobs: list[Alternative]


class ChatLogprobs(_Closed, kw_only=True):
    """Logprobs in the chat shape."""

    content: list[TokenLogprob] | None
    refusal: None


class PromptToken(_Closed, kw_only=True):
    """A token of a prompt or an alternative to one; the rank is known among the likeliest."""

    logprob: float
    rank: int | None
    decoded_token: str


PromptLogprobs = list[dict[str, PromptToken] | None]


class _OfPrompt(_Closed, kw_only=True):
    """What a client asked to see of a prompt; nothing comes before its first token."""

    prompt_logprobs: PromptLogprobs | msgspec.UnsetType = msgspec.UNSET
    prompt_token_ids: list[int] | msgspec.UnsetType = msgspec.UNSET


class AnswerMessage(_Closed, kw_only=True):
    """What the assistant said."""

    role: Literal["assistant"]
    content: str | None
    refusal: None


class ChatChoice(_Closed, kw_only=True):
    """One choice of a whole answer."""

    index: int
    message: AnswerMessage
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason
    stop_reason: str | int | None
    matched_stop: str | int | None
    token_ids: list[int] | msgspec.UnsetType = msgspec.UNSET


class _Envelope(_Closed, kw_only=True):
    """What stands around every answer."""

    id: str
    created: int
    model: str
    system_fingerprint: str
    runtime_timing: Timing | msgspec.UnsetType = msgspec.UNSET


class _ChatEnvelope(_Envelope, kw_only=True):
    """Around a chat's answer, which has one prompt."""

    prompt_logprobs: PromptLogprobs | msgspec.UnsetType = msgspec.UNSET
    prompt_token_ids: list[int] | msgspec.UnsetType = msgspec.UNSET


class ChatCompletion(_ChatEnvelope, kw_only=True):
    """The whole answer of a chat."""

    object: Literal["chat.completion"]
    choices: list[ChatChoice]
    usage: Usage


class AnswerDelta(_Closed, kw_only=True):
    """What a chunk adds to the assistant's message."""

    role: Literal["assistant"] | msgspec.UnsetType = msgspec.UNSET
    content: str | msgspec.UnsetType = msgspec.UNSET


class ChatChunkChoice(_Closed, kw_only=True):
    """What a chunk adds to one choice; the last one has the reason for its end."""

    index: int
    delta: AnswerDelta
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason | None
    stop_reason: str | int | None | msgspec.UnsetType = msgspec.UNSET
    matched_stop: str | int | None | msgspec.UnsetType = msgspec.UNSET
    token_ids: list[int] | msgspec.UnsetType = msgspec.UNSET


class ChatCompletionChunk(_ChatEnvelope, kw_only=True):
    """A streamed piece of a chat's answer; `choices` is empty in the one with the usage."""

    object: Literal["chat.completion.chunk"]
    choices: list[ChatChunkChoice]
    usage: Usage | None | msgspec.UnsetType = msgspec.UNSET


class CompletionLogprobs(_Closed, kw_only=True):
    """Logprobs in the completions shape; the first token of an echoed prompt has none."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None] | None
    text_offset: list[int]


class CompletionChoice(_OfPrompt, kw_only=True):
    """One choice of a whole answer."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: FinishReason
    stop_reason: str | int | None
    matched_stop: str | int | None
    token_ids: list[int] | msgspec.UnsetType = msgspec.UNSET


class Completion(_Envelope, kw_only=True):
    """The whole answer to prompts."""

    object: Literal["text_completion"]
    choices: list[CompletionChoice]
    usage: Usage


class CompletionChunkChoice(_OfPrompt, kw_only=True):
    """What a chunk adds to one choice."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: FinishReason | None
    stop_reason: str | int | None | msgspec.UnsetType = msgspec.UNSET
    matched_stop: str | int | None | msgspec.UnsetType = msgspec.UNSET
    token_ids: list[int] | msgspec.UnsetType = msgspec.UNSET


class CompletionChunk(_Envelope, kw_only=True):
    """A streamed piece of an answer; `choices` is empty in the one with the usage."""

    object: Literal["text_completion"]
    choices: list[CompletionChunkChoice]
    usage: Usage | None | msgspec.UnsetType = msgspec.UNSET


class ResponseEvent(msgspec.Struct, kw_only=True):
    """An event of a response's stream, in the form of OpenAI's of the same type; numbers begin at 0, without gaps."""

    type: str
    sequence_number: int


class Deleted(_Closed, kw_only=True):
    """A response that is gone."""

    id: str
    object: Literal["response"]
    deleted: Literal[True]


class InputItems(_Closed, kw_only=True):
    """A page of the items that a response was made from."""

    object: Literal["list"]
    data: list[Item]
    first_id: str | None
    last_id: str | None
    has_more: bool


class Model(_Closed, kw_only=True):
    """A name under which the model is served; `max_model_len` is its context, in tokens."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    root: str
    max_model_len: int


class ModelList(_Closed, kw_only=True):
    """All served names."""

    object: Literal["list"]
    data: list[Model]


class Version(_Closed, kw_only=True):
    """This server's version and what computes."""

    version: str
    engine: str


class Worker(_Closed, kw_only=True):
    """A worker's state; `reason` says why it is not up."""

    role: Role
    state: WorkerState
    reason: str | msgspec.UnsetType = msgspec.UNSET
    corrupt_chunks: int | msgspec.UnsetType = msgspec.UNSET


class Health(_Closed, kw_only=True):
    """Whether the server takes requests."""

    status: ServerState
    detail: str | msgspec.UnsetType = msgspec.UNSET
    workers: dict[str, Worker] | msgspec.UnsetType = msgspec.UNSET


class Workers(_Closed, kw_only=True):
    """All workers by name."""

    workers: dict[str, Worker]


class Campaign(_Closed, kw_only=True):
    """The failures that were ordered and how often each struck."""

    on: bool
    spec: str | msgspec.UnsetType = msgspec.UNSET
    hits: dict[str, int] | msgspec.UnsetType = msgspec.UNSET
    warning: str | msgspec.UnsetType = msgspec.UNSET
