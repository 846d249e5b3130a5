"""Disaggregated equals aggregated, in the sense of design invariant 4, over prompts of 1 to 1,500 tokens.

The float32 and bfloat16 bounds on the margin of a first difference: a token may flip only where the float32 reference
itself is that undecided. Randomness is the same on all topologies, so with seeds the Gumbel-perturbed scores decide.
"""

import random
from pathlib import Path

import numpy as np
import pytest

from actors.client import GenerateRequest
from runtime.demo import MODEL_DIR
from runtime.sampling_params import SamplingParams
from runtime.tokens import Tokenizer
from tests.checkpoints import write_checkpoint
from tests.e2e.parity import EngineShelf, Verdict, answers, compare
from tests.reference_model import ReferenceModel

TOPOLOGIES = ("prefill=1,decode=1", "prefill=2,decode=2", "prefill=1,decode=3", "prefill=3,decode=1")
TAU = {"float32": 2e-4, "bfloat16": 0.1}
"""Largest margin, in units of logits over temperature, at which a first difference counts as rounding."""

TAU_CUT = {"float32": 1e-5, "bfloat16": 0.01}
"""Largest distance to the top-p cut, in probability mass, at which a token may fall on either side of it."""

MAX_CLOSE_CALLS = {"float32": 2, "bfloat16": 12}
"""Of 128 requests; more would mean that the topologies compute different things."""

MAX_LOGPROB_GAP = {"float32": 1e-4, "bfloat16": 0.05}


NUM_PROMPTS = 64


def _both_ways(name: str, prompt: tuple[int, ...], index: int, max_tokens: int) -> list[GenerateRequest]:
    """The prompt once greedy and once with seeded sampling."""
    greedy = SamplingParams(seed=0, max_tokens=max_tokens, temperature=0.0, logprobs=0)
    seeded = SamplingParams(seed=1000 + index, max_tokens=max_tokens, temperature=0.8, top_p=0.95, logprobs=0)
    return [
        GenerateRequest(request=f"{name}-greedy", prompt=prompt, params=greedy),
        GenerateRequest(request=f"{name}-seeded", prompt=prompt, params=seeded),
    ]


def _random_requests(vocab_size: int) -> list[GenerateRequest]:
    """64 prompts: lengths around the page and chunk borders, and log-uniform up to 1,500."""
    rng = random.Random(5)
    lengths = [1, 2, 15, 16, 17, 127, 128, 129, 255, 256, 257, 1499, 1500]
    lengths += [round(np.exp(rng.uniform(0, np.log(1500)))) for _ in range(NUM_PROMPTS - len(lengths))]
    requests = list[GenerateRequest]()
    for index, length in enumerate(lengths):
        prompt = tuple(rng.randrange(vocab_size) for _ in range(length))
        requests += _both_ways(f"p{index}-{length}", prompt, index, max_tokens=1 + index % 24)
    return requests


def _demo_requests() -> list[GenerateRequest]:
    """64 questions to the demo model, through its own chat template."""
    rng, tokenizer = random.Random(6), Tokenizer.load(MODEL_DIR)
    requests = list[GenerateRequest]()
    for index in range(NUM_PROMPTS):
        question = f"What is {rng.randrange(100)} {rng.choice('+-*')} {rng.randrange(100)}?"
        prompt = tokenizer.render_chat([{"role": "user", "content": question}])
        tokens = tuple(tokenizer.encode(prompt, add_special_tokens=False))
        requests += _both_ways(f"q{index}", tokens, index, max_tokens=32)
    return requests


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random model with 4,096 tokens of context, whose logits have a standard deviation of 3."""
    return write_checkpoint(tmp_path_factory.mktemp("model"), max_position_embeddings=4096, seed=11)


def judge(name: str, verdict: Verdict, dtype: str, num_requests: int) -> None:
    """What design invariant 4 allows, and no more."""
    print(f"{name}: {verdict}")  # noqa: T201
    assert not verdict.wrong
    assert len(verdict.close_calls) <= MAX_CLOSE_CALLS[dtype]
    assert verdict.equal + len(verdict.close_calls) == num_requests
    assert verdict.max_logprob_gap <= MAX_LOGPROB_GAP[dtype]


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("model", ["random", "demo"])
def test_disaggregated_equals_aggregated(model: str, dtype: str, checkpoint: Path) -> None:
    folder = checkpoint if model == "random" else MODEL_DIR
    requests = _random_requests(vocab_size=200) if model == "random" else _demo_requests()
    shelf, reference = EngineShelf(folder, dtype), ReferenceModel(folder)
    limits = (TAU[dtype], TAU_CUT[dtype])
    aggregated = answers(shelf.engines("mixed=1"), "mixed=1", requests)
    for topology in TOPOLOGIES:
        disaggregated = answers(shelf.engines(topology), topology, requests)
        verdict = compare(reference, requests, aggregated, disaggregated, *limits)
        judge(f"{model} {dtype} {topology}", verdict, dtype, 2 * NUM_PROMPTS)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("topology", ["mixed=1", "prefill=2,decode=2"])
def test_cached_prefixes_change_nothing(topology: str, dtype: str, checkpoint: Path) -> None:
    """Each prompt's second answer, from cached pages wherever there is a full one, against a server without a cache."""
    requests = _random_requests(vocab_size=200)[:NUM_PROMPTS]
    shelf, reference = EngineShelf(checkpoint, dtype), ReferenceModel(checkpoint)
    cold = answers(shelf.engines("mixed=1"), "mixed=1", requests)
    cached = answers(shelf.engines(topology), topology, requests, prefix_cache=True)
    hits = [cached[request.request].cached_tokens for request in requests]
    assert all(hit <= len(request.prompt) - 1 for hit, request in zip(hits, requests, strict=True))
    assert sum(hits) > 0.8 * sum(len(request.prompt) for request in requests)
    verdict = compare(reference, requests, cold, cached, TAU[dtype], TAU_CUT[dtype])
    judge(f"{dtype} {topology} cached", verdict, dtype, len(requests))
