"""Whether a struck server's answers are those of an undisturbed one, in the sense of design invariant 4."""

import numpy as np

from actors.client import GenerateRequest
from tests.chaos.harness import Answer, Stream
from tests.e2e.parity import margins
from tests.reference_model import ReferenceModel

TAU = 2e-4
"""Largest margin, in units of logits over temperature, at which a first difference counts as rounding."""

TAU_CUT = 1e-5
MAX_LOGPROB_GAP = 1e-4


def judge(
    reference: ReferenceModel,
    requests: list[GenerateRequest],
    expected: dict[str, Answer],
    actual: dict[str, Answer],
) -> list[str]:
    """The close calls; raises AssertionError for everything that is not one."""
    close_calls = list[str]()
    for request in requests:
        before, after = expected[request.request], actual[request.request]
        _judge_scores(request, before.scores, after.scores)
        calls = [
            _judge_choice(reference, request, choice, *pair)
            for choice, pair in enumerate(zip(before.streams, after.streams, strict=True))
        ]
        close_calls += [call for call in calls if call is not None]
        if not any(calls):
            assert after.completion_tokens == before.completion_tokens, request.request
    return close_calls


def _judge_scores(request: GenerateRequest, expected: list[float | None], actual: list[float | None]) -> None:
    wanted = 0 if request.params.prompt_logprobs is None else len(request.prompt) - 1
    assert len(expected) == len(actual) == wanted, request.request
    for index, (x, y) in enumerate(zip(expected, actual, strict=True)):
        assert x is not None
        assert y is not None
        assert abs(x - y) <= MAX_LOGPROB_GAP, f"{request.request} prompt at {index}: logprob {x} or {y}"


def _judge_choice(
    reference: ReferenceModel, request: GenerateRequest, choice: int, expected: Stream, actual: Stream
) -> str | None:
    name = f"{request.request}/{choice}"
    pairs = enumerate(zip(expected.tokens, actual.tokens, strict=False))
    first = next((index for index, (x, y) in pairs if x != y), None)
    common = first if first is not None else min(len(expected.tokens), len(actual.tokens))
    for index in range(common):
        x, y = expected.logprobs[index], actual.logprobs[index]
        assert (x is None) == (y is None), f"{name} at {index}: logprob {x} or {y}"
        assert x is None or y is None or abs(x - y) <= MAX_LOGPROB_GAP, f"{name} at {index}: logprob {x} or {y}"
    if first is None:
        got = (actual.tokens, actual.text, actual.finish, actual.stop_match)
        want = (expected.tokens, expected.text, expected.finish, expected.stop_match)
        assert got == want, f"{name} ends with {got} instead of {want}"
        return None
    a, b = expected.tokens[first], actual.tokens[first]
    margin, cut = margins(reference, request, expected.tokens[:first], a, b, choice)
    assert margin < TAU or cut < TAU_CUT, f"{name} at {first}: {a} or {b}, {margin:.2e} apart, cut {cut:.2e}"
    return f"{name} at {first}: {a} or {b}, {margin:.2e} apart"


def stalls_s(expected: dict[str, Answer], actual: dict[str, Answer]) -> list[float]:
    """How much longer each stream's longest wait for a token was than without failures."""
    return [
        max(0.0, after.longest_gap_s - before.longest_gap_s)
        for name in expected
        for before, after in zip(expected[name].streams, actual[name].streams, strict=True)
    ]


def percentiles(values: list[float]) -> dict[str, float]:
    """p50, p99 and the largest."""
    return {f"p{q}": float(np.percentile(values, q)) for q in (50, 99, 100)}
