"""Turns a decoded body and its prompts into a `Job`: after this nothing is optional and nothing is absurd.

Runs in a worker thread before the gateway hears of the request. A refusal is a `RequestError` that names the
field, its value and what is allowed. The two endpoints bring their prompts as tokens, made by `encode_prompt`
where they came as text, and their logprobs as a number; all else is shared and happens here.
"""

import time
import uuid
from collections.abc import Callable, Sequence
from typing import Literal

import msgspec

from actors.client import GenerateRequest
from api.checks import check_token_ids, shown, whole_in_range
from api.model import ApiSettings, ServedModel
from api.parsers.parts import ContentParser, OutputParser
from api.sampling import resolve_sampling
from api.schema import UNSUPPORTED, CompletionBody, SamplingBody
from api.structured import constraint_behind, resolve_constraint
from api.text_options import resolve_text
from api.truncation import cut_tokens, num_added
from runtime.detokenize import CONTEXT_TOKENS
from runtime.errors import RequestError
from runtime.sampling_params import MAX_LOGPROBS
from runtime.text_stream import TextOptions

MAX_SALT_CHARS = 512
MAX_TIMEOUT_S = 86_400.0
MAX_PRIORITY = 2**31 - 1
MAX_PROMPT_ENTRIES = 2**20
"""Logprobs of prompts' tokens, alternatives included, in one answer: some 50 MB of JSON, written between two tokens of
everybody else.
"""


CallShape = Literal["none", "tool_calls", "function_call"]


class Prompt(msgspec.Struct, frozen=True):
    """One prompt's tokens, the field that they came from, and the text that they stand for, if it was a text."""

    param: str
    tokens: Sequence[int]
    text: str | None = None


class Echo(msgspec.Struct, frozen=True):
    """What an answer shows of its prompt: the client's own text, or else what the tokens say."""

    text: str
    is_clients: bool


class MaxTokens(msgspec.Struct, frozen=True, kw_only=True):
    """The limit on the answer's length: the field's name, its value, and what holds when there is none.

    Without a default, an absent limit means the rest of the context. `least` is the smallest that is allowed; an
    engine request for none still samples a token, which the answer does not show.
    """

    param: str
    asked: int | None
    default: int | None = None
    least: int = 1


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """One HTTP request, ready to run: one engine request per prompt, `num_choices` choices each.

    `include_timing` comes from a header, so it is the endpoint that sets it. `make_parser` makes the parser of one
    choice's text; completions show the text as it is. `echo` has one entry for each prompt where answers begin with it.
    `logprobs` and `prompt_logprobs` are how many alternatives the client sees of each token, None for no logprobs; the
    engine may have been asked for more. With `drop_tokens` nothing of what is sampled is shown or counted. `call_shape`
    is where the client looks for calls, if there can be any.
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
    prompt_logprobs: int | None = None
    echo: tuple[Echo, ...] | None = None
    drop_tokens: bool = False
    return_token_ids: bool = False
    tokens_as_ids: bool = False
    include_timing: bool = False
    call_shape: CallShape = "none"
    shows_reasoning: bool = True
    make_parser: Callable[[], OutputParser] = ContentParser


def encode_prompt(
    param: str, text: str, model: ServedModel, *, add_special_tokens: bool = False, cut: int | None = None
) -> Prompt:
    """The prompt that a text makes, of which the last `cut` tokens are kept, behind those that the tokenizer adds.

    A text that no tokens of the context could hold is refused without encoding it, or, where it may be cut, loses its
    beginning without encoding it.
    """
    limit = model.max_total_tokens
    longest = limit * model.tokenizer.longest_token_bytes
    if len(text) > longest and cut is None:
        raise _too_long(
            param, f"the text of {len(text)} characters is too long for the {model.holder} of {limit} tokens"
        )
    end = text[-longest:]
    tokens = model.tokenizer.encode(end, add_special_tokens=add_special_tokens)
    kept = cut_tokens(tokens, cut, num_added(model.tokenizer, tokens, end))
    return Prompt(param, kept, text if len(end) == len(text) and len(kept) == len(tokens) else None)


def make_job(
    prefix: str,
    body: SamplingBody,
    prompts: Sequence[Prompt],
    max_tokens: MaxTokens,
    logprobs: int | None,
    model: ServedModel,
    settings: ApiSettings,
    *,
    echo: bool = False,
    grammar: str | None = None,
) -> Job:
    """Checks everything that the endpoints share; `prefix` begins the answer's id."""
    _refuse_unsupported(body)
    name = check_model(body.model, model)
    num_choices = _choices(body, len(prompts), model)
    include_usage, continuous_usage = _stream_options(body)
    text = resolve_text(body)
    salt = _cache_salt(body.cache_salt)
    priority = whole_in_range("priority", body.priority, -MAX_PRIORITY, MAX_PRIORITY, 0)
    timeout_s = _timeout_s(body.timeout_s)
    scored = _prompt_logprobs(body.prompt_logprobs)
    _check_prompt_entries(body, prompts, num_choices, (scored, logprobs if echo else None))
    in_engine = max((count for count in (scored, logprobs if echo else None) if count is not None), default=None)
    constraint = resolve_constraint(body, model, demanded=grammar)
    job_id = f"{prefix}-{uuid.uuid4().hex}"
    requests = tuple(
        GenerateRequest(
            request=job_id if len(prompts) == 1 else f"{job_id}-{index}",
            prompt=tuple(prompt.tokens),
            params=msgspec.structs.replace(
                resolve_sampling(
                    body, _token_budget(prompt, max_tokens, model), logprobs, model, prompt_logprobs=in_engine
                ),
                constraint=constraint_behind(prompt.tokens, constraint, body, model),
            ),
            num_choices=num_choices,
            text=msgspec.structs.replace(text, context=tuple(prompt.tokens[-CONTEXT_TOKENS:])),
            cache_salt=salt,
            priority=priority,
            queue_timeout_s=settings.queue_timeout_s,
            progress_timeout_s=settings.progress_timeout_s,
            timeout_s=timeout_s,
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
        prompt_logprobs=scored,
        echo=tuple(_echo(prompt, text, model) for prompt in prompts) if echo else None,
        drop_tokens=max_tokens.asked == 0,
        return_token_ids=bool(body.return_token_ids),
        tokens_as_ids=bool(body.return_tokens_as_token_ids),
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
        if getattr(body, name, None) not in (None, False, "", []):
            raise RequestError(f"{name} is not supported", param=name, code="unsupported_parameter")


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


def _prompt_logprobs(asked: int | None) -> int | None:
    """Alternatives that are shown of each token of the prompt."""
    return None if asked is None else whole_in_range("prompt_logprobs", asked, 0, MAX_LOGPROBS, 0)


def _check_prompt_entries(
    body: SamplingBody, prompts: Sequence[Prompt], num_choices: int, counts: tuple[int | None, int | None]
) -> None:
    """Bounds what is told of the prompts. Every choice of a completion brings all of its prompt's along."""
    copies = num_choices if isinstance(body, CompletionBody) else 1
    for param, count in zip(("prompt_logprobs", "logprobs"), counts, strict=True):
        entries = sum(len(prompt.tokens) for prompt in prompts) * copies * ((count or 0) + 1)
        if count is not None and entries > MAX_PROMPT_ENTRIES:
            raise RequestError(
                f"{param}: {count} alternatives to each token of the prompts of {copies} choices each make {entries} "
                f"logprobs in one answer; allowed: {MAX_PROMPT_ENTRIES}",
                param=param,
            )


def _echo(prompt: Prompt, options: TextOptions, model: ServedModel) -> Echo:
    if prompt.text is not None:
        return Echo(prompt.text, is_clients=True)
    text = model.tokenizer.decode(
        prompt.tokens, skip_special_tokens=options.skip_special_tokens, shown_ids=options.shown_ids
    )
    return Echo(text, is_clients=False)


def _timeout_s(timeout_s: float | None) -> float | None:
    if timeout_s is not None and not 0 < timeout_s <= MAX_TIMEOUT_S:
        raise RequestError(
            f"timeout_s: must be above 0 and at most {MAX_TIMEOUT_S:g}, got {timeout_s:g}", param="timeout_s"
        )
    return timeout_s


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
    if asked < max_tokens.least:
        raise RequestError(
            f"{max_tokens.param}: must be at least {max_tokens.least}, got {shown(asked)}", param=max_tokens.param
        )
    if asked > room:
        raise _too_long(
            max_tokens.param,
            f"{shown(asked)} tokens do not fit behind a prompt of {length}: the {holder} holds {limit}, which"
            f" leaves {room}",
        )
    return max(asked, 1)


def _too_long(param: str, message: str) -> RequestError:
    return RequestError(f"{param}: {message}", param=param, code="context_length_exceeded")
