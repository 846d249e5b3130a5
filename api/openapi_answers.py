"""The shapes of answers, for `/openapi.json` alone: the routes build their answers as plain dictionaries.

Keys with a default may be absent; no others are ever sent.
"""

from typing import Literal

import msgspec

from actors.messages import WorkerState
from api.model import ServerState
from api.responses.items import Item
from runtime.topology import Role

FinishReason = Literal["stop", "length"]
ChatFinishReason = Literal["stop", "length", "tool_calls", "function_call"]


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


class CompletionTokensDetails(_Closed, kw_only=True):
    """Of the answer's tokens, those of its reasoning."""

    reasoning_tokens: int


class Usage(_Closed, kw_only=True):
    """Token counts of one request, all its choices together."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails | msgspec.UnsetType = msgspec.UNSET
    completion_tokens_details: CompletionTokensDetails | msgspec.UnsetType = msgspec.UNSET


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


class AnsweredFunction(_Closed, kw_only=True):
    """A function that is to be called; `arguments` is JSON text."""

    name: str
    arguments: str


class AnsweredCall(_Closed, kw_only=True):
    """A call that the assistant makes."""

    id: str
    type: Literal["function"]
    function: AnsweredFunction


class AnswerMessage(_Closed, kw_only=True):
    """What the assistant said; `reasoning` is another name of `reasoning_content`."""

    role: Literal["assistant"]
    content: str | None
    refusal: None
    reasoning_content: str | msgspec.UnsetType = msgspec.UNSET
    reasoning: str | msgspec.UnsetType = msgspec.UNSET
    tool_calls: list[AnsweredCall] | msgspec.UnsetType = msgspec.UNSET
    function_call: AnsweredFunction | msgspec.UnsetType = msgspec.UNSET


class ChatChoice(_Closed, kw_only=True):
    """One choice of a whole answer."""

    index: int
    message: AnswerMessage
    logprobs: ChatLogprobs | None
    finish_reason: ChatFinishReason
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


class FunctionDelta(_Closed, kw_only=True):
    """What a chunk adds to a call: first the name, then pieces of the arguments."""

    name: str | msgspec.UnsetType = msgspec.UNSET
    arguments: str


class CallDelta(_Closed, kw_only=True):
    """The same for one of several calls; its first piece has the id."""

    index: int
    id: str | msgspec.UnsetType = msgspec.UNSET
    type: Literal["function"] | msgspec.UnsetType = msgspec.UNSET
    function: FunctionDelta


class AnswerDelta(_Closed, kw_only=True):
    """What a chunk adds to the assistant's message."""

    role: Literal["assistant"] | msgspec.UnsetType = msgspec.UNSET
    content: str | None | msgspec.UnsetType = msgspec.UNSET
    reasoning_content: str | msgspec.UnsetType = msgspec.UNSET
    reasoning: str | msgspec.UnsetType = msgspec.UNSET
    tool_calls: list[CallDelta] | msgspec.UnsetType = msgspec.UNSET
    function_call: FunctionDelta | msgspec.UnsetType = msgspec.UNSET


class ChatChunkChoice(_Closed, kw_only=True):
    """What a chunk adds to one choice; the last one has the reason for its end."""

    index: int
    delta: AnswerDelta
    logprobs: ChatLogprobs | None
    finish_reason: ChatFinishReason | None
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


class Live(_Closed, kw_only=True):
    """The process answers."""

    status: Literal["live"]


class KvPages(_Closed, kw_only=True):
    """A worker's pages: those of sequences, those that only hold prefixes, and the rest."""

    used: int
    cached: int
    free: int


class WorkerLoad(Worker, kw_only=True):
    """A worker's state and load; `kv_usage` is the used part of its pages, from 0 to 1."""

    running: int | msgspec.UnsetType = msgspec.UNSET
    leased: int | msgspec.UnsetType = msgspec.UNSET
    prefilling: int | msgspec.UnsetType = msgspec.UNSET
    queued_prefill_tokens: int | msgspec.UnsetType = msgspec.UNSET
    kv_usage: float | msgspec.UnsetType = msgspec.UNSET
    kv_pages: KvPages | msgspec.UnsetType = msgspec.UNSET


class Load(_Closed, kw_only=True):
    """How many requests run and wait."""

    server_load: int
    running: int
    waiting: int
    workers: dict[str, WorkerLoad]


class CachesReset(_Closed, kw_only=True):
    """Pages that were freed, in all and by worker; null where a worker did not answer."""

    pages: int
    workers: dict[str, int | None]


class Profile(_Closed, kw_only=True):
    """Where a profile goes."""

    profile: Literal["started", "written"]
    folder: str


class Tokens(_Closed, kw_only=True):
    """What a text or messages become."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None


class Text(_Closed, kw_only=True):
    """What tokens say."""

    prompt: str


class TokenizerInfo(_Closed, kw_only=True):
    """The served tokenizer, for clients that have none of their own."""

    bos_token: str | None
    eos_token: str | None
    pad_token: str | None
    unk_token: str | None
    tokenizer_class: str
    chat_template: str | dict[str, str] | None
    vocab_size: int
    max_model_len: int
