from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats

from runtime import sampler_noise
from runtime.sampler import SamplerRows, advance, empty_rows, logprobs, sample
from runtime.sampling_params import SamplingParams
from tests.runtime import numpy_sampler
from tests.runtime.sampler_cases import Request, pack, stack

VOCAB_SIZE = 300

run_sample = jax.jit(sample, static_argnames="use_sort")
run_advance = jax.jit(advance)
run_logprobs = jax.jit(logprobs, static_argnames="k")


def request(**values: object) -> Request:
    return SamplingParams(**{"seed": 0, "max_tokens": 9, **values}), [], []


def draw(logits: np.ndarray, state: SamplerRows, rows: list[int], *, use_sort: bool = False) -> list[int]:
    return np.asarray(run_sample(logits, state, jnp.array(rows, jnp.int32), use_sort=use_sort)).tolist()


CHI_SQUARED_CASES = {
    "temperature": {"temperature": 0.7},
    "top-k": {"top_k": 6, "temperature": 1.5},
    "top-p": {"top_p": 0.8, "temperature": 1.2},
    "min-p": {"min_p": 0.1},
    "penalties": {"presence_penalty": 0.7, "frequency_penalty": 0.3, "repetition_penalty": 1.4},
    "mask and bias": {
        "allowed_mask": pack(np.arange(16) % 3 > 0),
        "logit_bias": ((1, 2.0), (4, -1.0)),
        "top_p": 0.9,
    },
}


@pytest.mark.parametrize("varied", ["seed", "choice", "index"])
@pytest.mark.parametrize("case", CHI_SQUARED_CASES)
def test_samples_follow_the_processed_distribution(case: str, varied: str) -> None:
    num_draws, vocab_size = 20_000, 16
    params, prompt, output = SamplingParams(seed=3, max_tokens=9, **CHI_SQUARED_CASES[case]), [1, 2], [2, 5, 5]
    logits = np.random.default_rng(0).normal(0, 1.5, vocab_size).astype(np.float32)
    expected = numpy_sampler.distribution(logits, params, prompt, output).probabilities * num_draws
    one = stack([(params, prompt, output)], vocab_size)
    state = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (num_draws, *leaf.shape[1:])), one)
    numbers = jnp.arange(num_draws, dtype=jnp.int32)
    if varied == "seed":
        state = state._replace(seed=state.seed.at[:, 0].set(numbers.astype(jnp.uint32)))
    else:
        state = state._replace(**{varied: numbers})
    tokens = draw(np.tile(logits, (num_draws, 1)), state, list(range(num_draws)))
    counts = np.bincount(tokens, minlength=vocab_size)
    assert counts[expected == 0].sum() == 0
    is_common = expected >= 5
    observed = np.append(counts[is_common], counts[~is_common].sum())
    wanted = np.append(expected[is_common], expected[~is_common].sum())
    is_possible = wanted > 0
    assert scipy.stats.chisquare(observed[is_possible], wanted[is_possible]).pvalue > 1e-3


def mixed_requests(rng: np.random.Generator, count: int) -> list[Request]:
    return [
        (
            SamplingParams(
                seed=int(rng.integers(2**63)),
                max_tokens=9,
                temperature=float(rng.choice([0.0, 0.6, 1.0, 3.0])),
                top_k=int(rng.choice([0, 5, 200])),
                top_p=float(rng.choice([0.5, 0.95, 1.0])),
                min_p=float(rng.choice([0.0, 0.05])),
                presence_penalty=float(rng.choice([0.0, 0.5])),
                repetition_penalty=float(rng.choice([1.0, 1.2])),
                logit_bias=((3, 2.5),) if rng.random() < 0.3 else (),
                allowed_mask=pack(rng.random(VOCAB_SIZE) < 0.8) if rng.random() < 0.3 else None,
                min_tokens=int(rng.integers(8)),
                stop_token_ids=(7, 8),
            ),
            rng.integers(VOCAB_SIZE, size=5).tolist(),
            rng.integers(VOCAB_SIZE, size=rng.integers(6)).tolist(),
        )
        for _ in range(count)
    ]


@pytest.mark.parametrize("use_sort", [False, True])
def test_a_row_does_not_depend_on_its_batch(use_sort: bool) -> None:
    rng = np.random.default_rng(1)
    state = stack(mixed_requests(rng, 64), VOCAB_SIZE)
    logits = rng.normal(0, 2, size=(64, VOCAB_SIZE)).astype(np.float32)
    together = draw(logits, state, list(range(64)), use_sort=use_sort)
    order = rng.permutation(64).tolist()
    shuffled = draw(logits[order], state, order, use_sort=use_sort)
    assert shuffled == [together[row] for row in order]
    for size in (1, 4):
        for start in range(0, 64, size):
            rows = order[start : start + size]
            assert draw(logits[rows], state, rows, use_sort=use_sort) == [together[row] for row in rows]


def test_both_variants_draw_the_same_tokens() -> None:
    rng = np.random.default_rng(2)
    state = stack(mixed_requests(rng, 64), VOCAB_SIZE)
    logits = rng.normal(0, 2, size=(64, VOCAB_SIZE)).astype(np.float32)
    rows = list(range(64))
    assert draw(logits, state, rows) == draw(logits, state, rows, use_sort=True)


def noise(seed: int, choice: int = 0, index: int = 0, vocab_size: int = 1000) -> np.ndarray:
    halves = jnp.array([[seed & 0xFFFFFFFF, seed >> 32]], jnp.uint32)
    key = sampler_noise.row_keys(halves, jnp.array([choice]), jnp.array([index]))
    return np.asarray(sampler_noise.random_bits(key, vocab_size))[0]


def test_every_part_of_the_key_changes_the_noise() -> None:
    keys = [(5, 0, 0), (2**32 + 5, 0, 0), (5, 1, 0), (5, 0, 1), (5 << 32, 0, 0), (0, 5, 0), (0, 0, 5), (0, 0, 0)]
    draws = [noise(*key) for key in keys]
    for one in range(len(keys)):
        for other in range(one):
            assert (draws[one] == draws[other]).sum() <= 1, (keys[one], keys[other])


def test_noise_is_that_of_jax_random() -> None:
    key = jax.random.key(0, impl="threefry2x32")
    for word in (0x89ABCDEF, 0x01234567, 3, 41):
        key = jax.random.fold_in(key, np.uint32(word))
    with jax.threefry_partitionable(True):
        reference = np.asarray(jax.random.bits(key, (1000,), jnp.uint32))
    np.testing.assert_array_equal(noise(0x0123456789ABCDEF, 3, 41), reference)


def test_noise_of_a_token_does_not_depend_on_the_vocabulary_size() -> None:
    np.testing.assert_array_equal(noise(1, vocab_size=33), noise(1)[:33])


def test_noise_is_gumbel_distributed_and_finite_at_the_ends() -> None:
    bits = noise(7, vocab_size=200_000)
    gumbel = np.asarray(sampler_noise.gumbel_of_bits(jnp.asarray(bits)))
    assert scipy.stats.kstest(gumbel, "gumbel_r").pvalue > 1e-3
    ends = np.asarray(sampler_noise.gumbel_of_bits(jnp.array([0, 2**32 - 1], jnp.uint32)))
    assert 22 < ends[0] < 23
    assert -3 < ends[1] < -2


@pytest.mark.parametrize("vocab_size", [1, 128, 1000])
def test_greedy_takes_the_lowest_of_equal_tokens(vocab_size: int) -> None:
    rng = np.random.default_rng(vocab_size)
    logits = rng.integers(-3, 4, size=(50, vocab_size)).astype(np.float32)
    assert draw(logits, empty_rows(2, vocab_size), [0] * 50) == np.argmax(logits, axis=1).tolist()


def test_broken_logits_give_a_token_of_the_vocabulary() -> None:
    nan, inf = np.nan, np.inf
    logits = np.array([[nan, 1, 2, nan], [nan] * 4, [1, inf, inf, 0], [-inf] * 4] * 2, np.float32)
    params = {"temperature": 0.5, "top_p": 0.5, "top_k": 2, "min_p": 0.1, "min_tokens": 1, "stop_token_ids": (3,)}
    state = stack([request(temperature=0.0), request(**params)], 4)
    for use_sort in (False, True):
        tokens = draw(logits, state, [0] * 4 + [1] * 4, use_sort=use_sort)
        assert tokens[:4] == [2, 0, 1, 0]
        assert tokens[4] == 2
        assert tokens[6] in (1, 2)
        assert all(0 <= token < 4 for token in tokens)


def test_advance_counts_every_mention_of_a_row() -> None:
    state = run_advance(empty_rows(4, 8), jnp.array([1, 3, 3, 0, 3]), jnp.array([5, 2, 2, 7, 6]))
    assert state.index.tolist() == [1, 1, 0, 3]
    counts = np.zeros((4, 8), int)
    counts[1, 5], counts[3, 2], counts[3, 6], counts[0, 7] = 1, 2, 1, 1
    np.testing.assert_array_equal(state.counts, counts)


@pytest.fixture
def donated_step() -> Callable[..., tuple[jax.Array, SamplerRows]]:
    def step(state: SamplerRows, logits: jax.Array, rows: jax.Array) -> tuple[jax.Array, SamplerRows]:
        tokens = sample(logits, state, rows)
        return tokens, advance(state, rows, tokens)

    return jax.jit(step, donate_argnums=0)


def test_a_donated_step_advances_in_place_and_feeds_the_penalties(
    donated_step: Callable[..., tuple[jax.Array, SamplerRows]],
) -> None:
    state = stack([request(temperature=0.0, presence_penalty=2.0), request(temperature=0.0)], 4)
    logits = jnp.array([[3.0, 2.0, 1.5, 0.0]] * 2)
    drawn = []
    for _ in range(4):
        before = state
        pointer = before.counts.unsafe_buffer_pointer()
        tokens, state = donated_step(before, logits, jnp.array([0, 1], jnp.int32))
        assert before.counts.is_deleted()
        assert state.counts.unsafe_buffer_pointer() == pointer
        drawn.append(tokens.tolist())
    assert drawn == [[0, 0], [1, 0], [2, 0], [0, 0]]
    assert state.index.tolist() == [4, 4]
    assert state.counts.tolist() == [[2, 1, 1, 0], [4, 0, 0, 0]]


def test_min_tokens_ends_at_its_index() -> None:
    params = {"temperature": 0.0, "min_tokens": 2, "stop_token_ids": (0,)}
    state = stack([request(**params)], 3)
    logits = np.array([[9.0, 1.0, 0.0]], np.float32)
    drawn = []
    for _ in range(3):
        drawn += draw(logits, state, [0])
        state = run_advance(state, jnp.array([0]), jnp.array(drawn[-1:]))
    assert drawn == [1, 1, 0]


@pytest.mark.parametrize("vocab_size", [1, 5, 1000])
def test_logprobs_are_the_log_softmax_of_raw_logits(vocab_size: int) -> None:
    rng = np.random.default_rng(vocab_size)
    logits = rng.normal(0, 20, size=(8, vocab_size)).astype(np.float32)
    tokens = rng.integers(vocab_size, size=8)
    expected = scipy.special.log_softmax(logits.astype(np.float64), axis=1)
    chosen, values, ids = (np.asarray(part) for part in run_logprobs(logits, jnp.asarray(tokens, jnp.int32), 20))
    np.testing.assert_allclose(chosen, expected[np.arange(8), tokens], rtol=1e-6, atol=1e-5)
    order = np.argsort(-logits, axis=1, kind="stable")[:, :20]
    size = order.shape[1]
    np.testing.assert_array_equal(ids[:, :size], order)
    np.testing.assert_allclose(values[:, :size], np.take_along_axis(expected, order, 1), rtol=1e-6, atol=1e-5)
    assert (ids[:, size:] == -1).all()
    assert np.isneginf(values[:, size:]).all()
