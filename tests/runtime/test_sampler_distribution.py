import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from runtime.sampling_params import SamplingParams
from tests.runtime.sampler_cases import Request, check_rows, pack, run_process, stack


def combination(rng: np.random.Generator, vocab_size: int, uses: tuple[bool, ...]) -> Request:
    temperature, top_k, top_p, min_p, presence, frequency, repetition, bias, mask, early = uses
    allowed = rng.random(vocab_size) < 0.7
    allowed[rng.integers(vocab_size)] = True
    biased = rng.choice(vocab_size, size=min(vocab_size, 5), replace=False)
    params = SamplingParams(
        seed=int(rng.integers(2**63)),
        max_tokens=100,
        temperature=float(rng.uniform(0.3, 2.0)) if temperature else 1.0,
        top_k=int(rng.choice([1, 2, 7, vocab_size // 2, vocab_size - 1, vocab_size])) if top_k else 0,
        top_p=float(rng.uniform(0.05, 0.999)) if top_p else 1.0,
        min_p=float(rng.uniform(0.0, 0.5)) if min_p else 0.0,
        presence_penalty=float(rng.uniform(-2, 2)) if presence else 0.0,
        frequency_penalty=float(rng.uniform(-2, 2)) if frequency else 0.0,
        repetition_penalty=float(rng.uniform(0.5, 2)) if repetition else 1.0,
        logit_bias=tuple((int(token), float(rng.uniform(-10, 10))) for token in biased) if bias else (),
        allowed_mask=pack(allowed) if mask else None,
        min_tokens=20 if early else 0,
        stop_token_ids=tuple(int(token) for token in rng.integers(vocab_size, size=3)),
    )
    prompt = rng.integers(vocab_size, size=rng.integers(1, 12)).tolist()
    return params, prompt, rng.integers(vocab_size, size=rng.integers(0, 12)).tolist()


@pytest.mark.parametrize("use_sort", [False, True])
@pytest.mark.parametrize("vocab_size", [1, 31, 32, 33, 1000])
def test_every_combination_of_features(vocab_size: int, use_sort: bool) -> None:
    rng = np.random.default_rng(vocab_size)
    requests = [combination(rng, vocab_size, uses) for uses in itertools.product([False, True], repeat=10)]
    logits = rng.normal(0, 3, size=(len(requests), vocab_size)).astype(np.float32)
    assert check_rows(logits, requests, use_sort=use_sort) < 0.02 * len(requests)


@pytest.mark.parametrize("vocab_size", [31, 1000])
def test_every_combination_at_temperature_zero(vocab_size: int) -> None:
    rng = np.random.default_rng(vocab_size)
    requests = []
    for uses in itertools.product([False, True], repeat=9):
        params, prompt, output = combination(rng, vocab_size, (False, *uses))
        requests.append((replace(params, temperature=0.0), prompt, output))
    logits = rng.normal(0, 3, size=(len(requests), vocab_size)).astype(np.float32)
    assert check_rows(logits, requests, use_sort=False) == 0


DYADIC = st.integers(-8, 8).map(lambda n: n / 4)
THOUSANDTHS = st.integers(1, 1000).map(lambda n: n / 1000)


@st.composite
def tied_request(draw: st.DrawFn) -> tuple[np.ndarray, Request]:
    """Few distinct logits and exactly representable settings, so that ties are ties in any precision."""
    vocab_size = 150
    token = st.integers(0, vocab_size - 1)
    tokens = st.lists(token, max_size=8)
    scores = draw(st.lists(st.one_of(DYADIC, st.just(-np.inf)), min_size=1, max_size=8))
    logits = np.array(draw(st.lists(st.sampled_from(scores), min_size=vocab_size, max_size=vocab_size)), np.float32)
    logits[draw(token)] = 1.0
    params = SamplingParams(
        seed=draw(st.integers(0, 2**64 - 1)),
        max_tokens=9,
        temperature=draw(st.sampled_from([0.0, 0.25, 0.5, 1.0, 2.0, 1.0e-3])),
        top_k=draw(st.one_of(st.just(0), st.integers(1, vocab_size))),
        top_p=draw(THOUSANDTHS),
        min_p=draw(THOUSANDTHS),
        presence_penalty=draw(DYADIC),
        frequency_penalty=draw(DYADIC),
        repetition_penalty=draw(st.sampled_from([0.5, 1.0, 2.0])),
        logit_bias=tuple(draw(st.dictionaries(token, DYADIC, max_size=5)).items()),
        min_tokens=draw(st.integers(0, 6)),
        stop_token_ids=tuple(draw(st.lists(token, max_size=4))),
    )
    return logits, (params, draw(tokens), draw(tokens))


@settings(max_examples=150, deadline=None, derandomize=True, database=None)
@given(tied_request())
def test_heavy_ties(case: tuple[np.ndarray, Request]) -> None:
    logits, request = case
    for use_sort in (False, True):
        check_rows(logits[None], [request], use_sort=use_sort)


@pytest.mark.parametrize("top_k", [0, 300, 999])
def test_both_variants_cut_alike_beyond_the_candidates(top_k: int) -> None:
    rng = np.random.default_rng(top_k)
    logits = rng.normal(0, 1, size=(32, 1000)).astype(np.float32)
    requests: list[Request] = [
        (SamplingParams(seed=0, max_tokens=9, temperature=2.0, top_k=top_k, top_p=float(p)), [], [])
        for p in np.linspace(0.01, 0.9999, 32)
    ]
    assert check_rows(logits, requests, use_sort=False) <= 2
    assert check_rows(logits, requests, use_sort=True) <= 2


def test_ties_at_a_cut_are_all_kept() -> None:
    logits = np.array([[2.0, 1.0, 1.0, 1.0, 0.0]], np.float32)
    for params in (
        SamplingParams(seed=0, max_tokens=9, top_k=2),
        SamplingParams(seed=0, max_tokens=9, top_p=0.6),
    ):
        for use_sort in (False, True):
            processed = run_process(logits, stack([(params, [], [])], 5), use_sort=use_sort)
            assert np.isfinite(np.asarray(processed)).tolist() == [[True, True, True, True, False]]


def test_no_token_left_drops_the_stop_masking_first_then_the_mask() -> None:
    logits = np.array([[3.0, 2.0, 1.0, 0.0]] * 3, np.float32)
    allowed = pack(np.array([False, False, True, False]))
    params = SamplingParams(seed=0, max_tokens=9, min_tokens=5, stop_token_ids=(2,), allowed_mask=allowed)
    requests: list[Request] = [
        (params, [], []),
        (replace(params, allowed_mask=None, stop_token_ids=(0, 1, 2, 3)), [], []),
        (replace(params, allowed_mask=bytes(4), min_tokens=0), [], []),
    ]
    kept = np.isfinite(np.asarray(run_process(logits, stack(requests, 4))))
    assert kept.tolist() == [[False, False, True, False], [True] * 4, [True] * 4]


def test_extreme_temperatures_keep_numbers_finite() -> None:
    logits = np.array([[30.0, -1e4, 29.0]] * 2, np.float32)
    params = [SamplingParams(seed=0, max_tokens=9, temperature=t, top_p=0.9, min_p=0.01) for t in (2e-38, 1e30)]
    processed = np.asarray(run_process(logits, stack([(p, [], []) for p in params], 3)))
    assert np.isfinite(processed).tolist() == [[True, False, False], [True, True, True]]
