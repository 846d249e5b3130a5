"""What clients are owed, computed from the request alone: no pages, no batches, no attempts."""

from collections.abc import Sequence
from functools import lru_cache

import msgspec

from actors.messages import FinishReason, TokenRecord
from runtime.sampling_params import SamplingParams
from tests.simulation import fake_constraints
from tests.simulation.fake_tokens import TokenRule, bag, fingerprint, score, token_text

_MASK = (1 << 64) - 1


class ExpectedChoice(msgspec.Struct, frozen=True):
    """The undisturbed answer of one choice; `finish` is None where its constraint fails behind `records`."""

    records: tuple[TokenRecord, ...]
    finish: FinishReason | None
    text: str
    stop_match: str | int | None


@lru_cache(maxsize=4096)
def expected_choice(
    prompt: tuple[int, ...], params: SamplingParams, choice: int, stop: tuple[str, ...]
) -> ExpectedChoice:
    """The answer to this prompt."""
    rule = TokenRule(params)
    prefix, prompt_bag, output_bag = fingerprint(prompt), bag(prompt), 0
    records: list[TokenRecord] = []
    text, scanned_from = "", 0
    while True:
        if _fails(params, "mask", len(records)):
            return ExpectedChoice(tuple(records), None, text, None)
        mask = _mask(params, records)
        record = rule.choose(prefix, choice, len(records), len(prompt), (prompt_bag, output_bag), mask)
        ends = record.token in params.stop_token_ids
        if not ends and _fails(params, "advance", len(records) + 1):
            return ExpectedChoice(tuple(records), None, text, None)
        records.append(record)
        if ends:
            return ExpectedChoice(tuple(records), "stop", text, record.token)
        for letter in token_text(record.token):
            text += letter
            may_match = text[scanned_from:] if len(records) > params.min_tokens else ""
            matches = [word for word in stop if may_match.endswith(word)]
            if matches:
                word = max(matches, key=len)
                return ExpectedChoice(tuple(records), "stop", text[: -len(word)], word)
        scanned_from = len(text) if len(records) == params.min_tokens else scanned_from
        if params.constraint is not None and fake_constraints.is_complete(_state(params, records)):
            return ExpectedChoice(tuple(records), "stop", text, None)
        if len(records) == params.max_tokens:
            return ExpectedChoice(tuple(records), "length", text, None)
        prefix = fingerprint((record.token,), prefix)
        output_bag = (output_bag + bag((record.token,))) & _MASK


def _fails(params: SamplingParams, how: str, count: int) -> bool:
    return params.constraint is not None and fake_constraints.fails(params, how, count)


def _mask(params: SamplingParams, records: Sequence[TokenRecord]) -> bytes | None:
    return None if params.constraint is None else fake_constraints.allowed(params, _state(params, records))


def _state(params: SamplingParams, records: Sequence[TokenRecord]) -> int:
    return fake_constraints.state_of(params, [record.token for record in records])


def expected_scores(prompt: tuple[int, ...], params: SamplingParams) -> tuple[TokenRecord, ...]:
    """Logprobs of the prompt behind its first token, if they are wanted."""
    if params.prompt_logprobs is None:
        return ()
    found = [score(fingerprint(prompt[:end]), prompt[end], params.prompt_logprobs) for end in range(1, len(prompt))]
    return tuple(TokenRecord(scored.token, scored.logprob, scored.top) for scored in found)
