"""Turns a decoded body and its prompts into a `Job`: after this nothing is optional and nothing is absurd.

Runs in a worker thread before the gateway hears of the request. A refusal is a `RequestError` that names the
field, its value and what is allowed. The two endpoints bring their prompts as tokens, made by `encode_prompt`
where they came as text, and their logprobs as a number; all else is shared and happens here.
"""

import time
import uuid
from collections.abc import Callable, Sequence

import msgspec

from actors.client import GenerateRequest
from api.checks import check_token_ids, shown, whole_in_range
from api.model import ApiSettings, ServedModel
from api.parsers.parts import ContentParser, OutputParser
from api.sampling import resolve_sampling
from api.schema import UNSUPPORTED, SamplingBody
from api.structured import constraint_behind, resolve_constraint
from runtime.errors import RequestError
from runtime.text_stream import TextOptions

MAX_STOP_STRINGS = 16
MAX_STOP_CHARS = 512
MAX_SALT_CHARS = 512


class Prompt(msgspec.Struct, frozen=True):
    """One prompt's tokens and the field that they came from."""

    param: str
    tokens: Sequence[int]


class MaxTokens(msgspec.Struct, frozen=True, kw_only=True):
    """The limit on the answer's length: the field's name, its value, and what holds when there is none.

    Without a default, an absent limit means the rest of the context.
    """

    param: str
    asked: int | None
    default: int | None = None


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """One HTTP request, ready to run: one engine request per prompt, `num_choices` choices each.

    `include_timing` comes from a header, so it is the endpoint that sets it. `make_parser` makes the parser of one
    choice's text; completions show the text as it is.
    """

    id: str
    created: int
    model: str
    requests: tuple[GenerateRequest, ...]
    num_choices: int
    stream: bool
    include_usage: bool
    continuous_usage: bool
    logprobs: int | None
    include_timing: bool = False
    make_parser: Callable[[], OutputParser] = ContentParser


def encode_prompt(param: str, text: str, model: ServedModel, *, add_special_tokens: bool = False) -> Prompt:
    """The prompt that a text makes. One that no tokens of the context could hold is refused without encoding it."""
    limit = model.max_total_tokens
    if len(text) > limit * model.tokenizer.longest_token_bytes:
        raise _too_long(
            param, f"the text of {len(text)} characters is too long for the {model.holder} of {limit} tokens"
        )
    return Prompt(param, model.tokenizer.encode(text, add_special_tokens=add_special_tokens))


def make_job(
    prefix: str,
    body: SamplingBody,
    prompts: Sequence[Prompt],
    max_tokens: MaxTokens,
    logprobs: int | None,
    model: ServedModel,
    settings: ApiSettings,
    grammar: str | None = None,
) -> Job:
    """Checks everything that the endpoints share; `prefix` begins the answer's id.

    `grammar` is a form of answer that the endpoint demands itself, as for a forced tool call.
    """
    _refuse_unsupported(body)
    name = check_model(body.model, model)
    num_choices = _choices(body, len(prompts), model)
    include_usage, continuous_usage = _stream_options(body)
    stop = _stop_strings(body.stop)
    salt = _cache_salt(body.cache_salt)
    constraint = resolve_constraint(body, model, demanded=grammar)
    job_id = f"{prefix}-{uuid.uuid4().hex}"
    requests = tuple(
        GenerateRequest(
            request=job_id if len(prompts) == 1 else f"{job_id}-{index}",
            prompt=tuple(prompt.tokens),
            params=msgspec.structs.replace(
                resolve_sampling(body, _token_budget(prompt, max_tokens, model), logprobs, model),
                constraint=constraint_behind(prompt.tokens, constraint, body, model),
            ),
            num_choices=num_choices,
            text=TextOptions(stop=stop, min_tokens=body.min_tokens or 0),
            cache_salt=salt,
            queue_timeout_s=settings.queue_timeout_s,
            progress_timeout_s=settings.progress_timeout_s,
        )
        for index, prompt in enumerate(prompts)
    )
    return Job(
        id=job_id,
        created=int(time.time()),
        model=name,
        requests=requests,
        num_choices=num_choices,
        stream=bool(body.stream),
        include_usage=include_usage,
        continuous_usage=continuous_usage,
        logprobs=logprobs,
    )


def check_model(name: str | None, model: ServedModel) -> str:
    """The name to answer under; a request without one gets the first."""
    if name is None:
        return model.names[0]
    if name not in model.names:
        raise RequestError(
            f"model: {name[:100]!r} is not served here; available: {', '.join(model.names)}",
            param="model",
            status=404,
            code="model_not_found",
        )
    return name


def _refuse_unsupported(body: SamplingBody) -> None:
    for name in UNSUPPORTED:
        if getattr(body, name, None) not in (None, False, "", [], {}):
            raise RequestError(f"{name} is not supported yet", param=name, code="unsupported_parameter")


def _choices(body: SamplingBody, num_prompts: int, model: ServedModel) -> int:
    n = whole_in_range("n", body.n, 1, model.max_choices, 1)
    if n * num_prompts > model.max_answers:
        raise RequestError(
            f"n: {n} choices for {num_prompts} prompts are more than {model.max_answers} in one request",
            param="n",
        )
    best_of = getattr(body, "best_of", None)
    if best_of is not None and best_of != n:
        raise RequestError(
            f"best_of: only a value equal to n ({n}) is supported, got {shown(best_of)}", param="best_of"
        )
    return n


def _stream_options(body: SamplingBody) -> tuple[bool, bool]:
    """Whether usage is sent at the stream's end, and whether with every chunk."""
    options = body.stream_options
    if options is None:
        return False, False
    if not body.stream:
        raise RequestError("stream_options: only allowed when stream is true", param="stream_options")
    return bool(options.include_usage), bool(options.include_usage and options.continuous_usage_stats)


def _stop_strings(stop: str | list[str] | None) -> tuple[str, ...]:
    texts = [stop] if isinstance(stop, str) else stop or []
    if len(texts) > MAX_STOP_STRINGS:
        raise RequestError(f"stop: at most {MAX_STOP_STRINGS} strings, got {len(texts)}", param="stop")
    for text in texts:
        if not 1 <= len(text) <= MAX_STOP_CHARS:
            raise RequestError(
                f"stop: a stop string must have 1 to {MAX_STOP_CHARS} characters, got {len(text)}", param="stop"
            )
    return tuple(dict.fromkeys(texts))


def _cache_salt(salt: str | None) -> str | None:
    if salt is not None and not 1 <= len(salt) <= MAX_SALT_CHARS:
        raise RequestError(
            f"cache_salt: must have 1 to {MAX_SALT_CHARS} characters, got {len(salt)}", param="cache_salt"
        )
    return salt


def _token_budget(prompt: Prompt, max_tokens: MaxTokens, model: ServedModel) -> int:
    """How many tokens may be generated; refuses what does not fit into the context or the pool."""
    if not prompt.tokens:
        raise RequestError(f"{prompt.param}: the prompt is empty", param=prompt.param)
    asked, length, limit, holder = max_tokens.asked, len(prompt.tokens), model.max_total_tokens, model.holder
    room = limit - length
    if room < 1:
        raise _too_long(
            prompt.param, f"a prompt of {length} tokens leaves no room for an answer in the {holder} of {limit}"
        )
    check_token_ids(prompt.param, prompt.tokens, model.vocab_size)
    if asked is None:
        return room if max_tokens.default is None else min(max_tokens.default, room)
    if asked < 1:
        raise RequestError(f"{max_tokens.param}: must be at least 1, got {shown(asked)}", param=max_tokens.param)
    if asked > room:
        raise _too_long(
            max_tokens.param,
            f"{shown(asked)} tokens do not fit behind a prompt of {length}: the {holder} holds {limit}, which"
            f" leaves {room}",
        )
    return asked


def _too_long(param: str, message: str) -> RequestError:
    return RequestError(f"{param}: {message}", param=param, code="context_length_exceeded")
