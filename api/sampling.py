"""Resolves a request's sampling fields into `SamplingParams`: checked, defaults filled in, seed drawn."""

from collections.abc import Sequence

from api.checks import check_token_ids, in_range, whole_in_range
from api.model import ServedModel
from api.schema import SamplingBody
from runtime.errors import RequestError
from runtime.sampling_params import MAX_LOGIT_BIAS, MAX_STOP_IDS, SamplingParams

GREEDY_BELOW = 1e-5
"""Temperatures below this are greedy: dividing logits by them overflows."""


def resolve_sampling(
    body: SamplingBody,
    max_tokens: int,
    logprobs: int | None,
    model: ServedModel,
    *,
    prompt_logprobs: int | None = None,
) -> SamplingParams:
    """Checks every sampling field; what is absent comes from the model's defaults, the seed from its source."""
    defaults = model.defaults
    temperature = in_range("temperature", body.temperature, 0, 2, defaults.temperature)
    min_tokens = whole_in_range("min_tokens", body.min_tokens, 0, max_tokens, 0)
    stop_ids = _stop_ids(body, model)
    return SamplingParams(
        seed=_seed(body.seed, model),
        max_tokens=max_tokens,
        temperature=temperature if temperature >= GREEDY_BELOW else 0.0,
        top_k=_top_k(body.top_k, model),
        top_p=_top_p(body.top_p, model),
        min_p=in_range("min_p", body.min_p, 0, 1, defaults.min_p),
        presence_penalty=in_range("presence_penalty", body.presence_penalty, -2, 2, 0.0),
        frequency_penalty=in_range("frequency_penalty", body.frequency_penalty, -2, 2, 0.0),
        repetition_penalty=in_range(
            "repetition_penalty", body.repetition_penalty, 0.01, 10, defaults.repetition_penalty
        ),
        logit_bias=_logit_bias(body.logit_bias or {}, model.vocab_size),
        allowed_mask=_allowed_mask(body.allowed_token_ids, stop_ids if min_tokens else (), model.vocab_size),
        min_tokens=min_tokens,
        stop_token_ids=stop_ids,
        logprobs=logprobs,
        prompt_logprobs=prompt_logprobs,
    )


def _seed(seed: int | None, model: ServedModel) -> int:
    if seed is None:
        return model.draw_seed()
    return whole_in_range("seed", seed, -(2**63), 2**63 - 1, 0)


def _top_k(top_k: int | None, model: ServedModel) -> int:
    """0 is off; so are -1 and whatever keeps the whole vocabulary."""
    value = whole_in_range("top_k", top_k, -1, 2**31 - 1, model.defaults.top_k)
    return value if 0 < value < model.vocab_size else 0


def _top_p(top_p: float | None, model: ServedModel) -> float:
    value = in_range("top_p", top_p, 0, 1, model.defaults.top_p)
    if value == 0:
        raise RequestError("top_p: must be above 0 and at most 1, got 0", param="top_p")
    return value


def _logit_bias(bias: dict[str, float], vocab_size: int) -> tuple[tuple[int, float], ...]:
    if len(bias) > MAX_LOGIT_BIAS:
        raise RequestError(f"logit_bias: at most {MAX_LOGIT_BIAS} entries, got {len(bias)}", param="logit_bias")
    entries: dict[int, float] = {}
    for key, value in bias.items():
        if not (key.isascii() and key.isdigit() and len(key) <= 10):
            raise RequestError(f"logit_bias: keys are token ids, got {key[:40]!r}", param="logit_bias")
        check_token_ids("logit_bias", [int(key)], vocab_size)
        entries[int(key)] = in_range("logit_bias", value, -100, 100, 0.0)
    return tuple(entries.items())


def _allowed_mask(allowed: list[int] | None, excluded: Sequence[int], vocab_size: int) -> bytes | None:
    """The packed mask of the allowed ids, of which some must be left when those that may not come first are not."""
    if allowed is None:
        return None
    check_token_ids("allowed_token_ids", allowed, vocab_size)
    if not set(allowed).difference(excluded):
        reason = "the list is empty" if not allowed else "min_tokens excludes all of them, for they end the text"
        raise RequestError(f"allowed_token_ids: must allow at least one token, but {reason}", param="allowed_token_ids")
    words = -(-vocab_size // 32)
    mask = bytearray(4 * words)
    for token in allowed:
        mask[token // 8] |= 1 << token % 8
    return bytes(mask)


def _stop_ids(body: SamplingBody, model: ServedModel) -> tuple[int, ...]:
    """The effective set: the model's own end-of-text ids unless ignored, then the client's."""
    own = () if body.ignore_eos else model.eos_token_ids
    asked = body.stop_token_ids or []
    check_token_ids("stop_token_ids", asked, model.vocab_size)
    ids = tuple(dict.fromkeys((*own, *asked)))
    if len(ids) > MAX_STOP_IDS:
        raise RequestError(
            f"stop_token_ids: at most {MAX_STOP_IDS} ids, the model's {len(own)} included, got {len(ids)}",
            param="stop_token_ids",
        )
    return ids
