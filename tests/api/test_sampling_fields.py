"""What the sampler is told for what a client sent."""

from typing import Any

import httpx
import msgspec
import pytest

from api.model import ServedModel, draw_os_seed
from api.sampling import resolve_sampling
from api.schema import CompletionBody
from runtime.model_config import GenerationDefaults
from runtime.sampling_params import SamplingParams
from tests.api.fake_client import FakeClient


def resolve(model: ServedModel, max_tokens: int = 10, **fields: Any) -> SamplingParams:
    return resolve_sampling(CompletionBody(**fields), max_tokens, None, model)


def test_defaults_come_from_the_model(model: ServedModel) -> None:
    params = resolve(model)
    assert (params.temperature, params.top_p, params.top_k, params.min_p) == (0.6, 0.95, 0, 0.0)
    assert params.seed == 12345
    assert params.stop_token_ids == model.eos_token_ids


def test_a_client_overrides_them(model: ServedModel) -> None:
    params = resolve(model, temperature=0, top_p=1, top_k=5, min_p=0.1, repetition_penalty=1.2)
    assert (params.temperature, params.top_p, params.top_k, params.min_p) == (0.0, 1.0, 5, 0.1)
    assert params.repetition_penalty == 1.2


def test_a_model_may_be_greedy_unless_a_client_says_otherwise(model: ServedModel) -> None:
    defaults = GenerationDefaults(temperature=0.0, top_k=20, min_p=0.1, repetition_penalty=1.1)
    greedy = msgspec.structs.replace(model, defaults=defaults)
    params = resolve(greedy)
    assert (params.temperature, params.top_k, params.min_p, params.repetition_penalty) == (0.0, 20, 0.1, 1.1)
    assert resolve(greedy, temperature=0.5).temperature == 0.5


@pytest.mark.parametrize(("asked", "told"), [(-1, 0), (0, 0), (1, 1), (399, 399), (400, 0), (10**6, 0)])
def test_top_k_that_keeps_everything_is_off(model: ServedModel, asked: int, told: int) -> None:
    assert resolve(model, top_k=asked).top_k == told


@pytest.mark.parametrize("temperature", [1e-6, 1e-300])
def test_tiny_temperatures_are_greedy(model: ServedModel, temperature: float) -> None:
    assert resolve(model, temperature=temperature).temperature == 0.0


@pytest.mark.parametrize("seed", [0, -1, 5, 2**32 + 5, -(2**63), 2**63 - 1])
def test_any_64_bit_seed_is_kept(model: ServedModel, seed: int) -> None:
    assert resolve(model, seed=seed).seed == seed


def test_seeds_are_drawn_anew(model: ServedModel) -> None:
    drawing = msgspec.structs.replace(model, draw_seed=draw_os_seed)
    assert resolve(drawing).seed != resolve(drawing).seed


def test_stop_ids_join_the_models_own(model: ServedModel) -> None:
    own = model.eos_token_ids
    assert resolve(model, stop_token_ids=[7, own[0], 7]).stop_token_ids == (*own, 7)
    assert resolve(model, stop_token_ids=[7], ignore_eos=True).stop_token_ids == (7,)
    assert resolve(model, ignore_eos=True).stop_token_ids == ()


def test_logit_bias_keys_are_ids(model: ServedModel) -> None:
    assert resolve(model, logit_bias={"5": -100, "007": 1}).logit_bias == ((5, -100.0), (7, 1.0))


def test_penalties_and_min_tokens(model: ServedModel) -> None:
    params = resolve(model, presence_penalty=-2, frequency_penalty=2, min_tokens=10)
    assert (params.presence_penalty, params.frequency_penalty, params.min_tokens) == (-2, 2, 10)


@pytest.mark.anyio
async def test_requests_carry_them_to_the_engine(http: httpx.AsyncClient, client: FakeClient) -> None:
    body = {"prompt": ["a", "b"], "seed": 3, "stop": "x", "logprobs": 4, "n": 2, "min_tokens": 1, "cache_salt": "me"}
    await http.post("/v1/completions", json=body)
    for request in client.requests:
        assert (request.params.seed, request.params.logprobs, request.params.min_tokens) == (3, 4, 1)
        assert (request.text.stop, request.num_choices, request.cache_salt) == (("x",), 2, "me")
