"""Engines whose attention, KV writes and page moves are the TPU kernels, in the TPU interpreter: equal to plain JAX."""

import random
from pathlib import Path

import pytest

from actors.client import GenerateRequest
from runtime.sampling_params import SamplingParams
from tests.checkpoints import write_checkpoint
from tests.e2e.parity import EngineShelf, answers, compare, mover_of
from tests.e2e.test_parity import MAX_LOGPROB_GAP, TAU, TAU_CUT
from tests.reference_model import ReferenceModel

LENGTHS = (1, 16, 17, 47, 70)


def _requests() -> list[GenerateRequest]:
    """Prompts around page and chunk borders, in turn greedy and with seeded sampling."""
    rng = random.Random(9)
    requests = list[GenerateRequest]()
    for index, length in enumerate(LENGTHS):
        sampled = {"temperature": 0.8, "top_p": 0.95} if index % 2 else {"temperature": 0.0}
        requests.append(
            GenerateRequest(
                request=f"p{length}",
                prompt=tuple(rng.randrange(200) for _ in range(length)),
                params=SamplingParams(seed=index, max_tokens=4 + index, logprobs=0, **sampled),
            )
        )
    return requests


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("head_dim", "topology"),
    [(64, "prefill=1,decode=1"), (128, "prefill=1x2,decode=1x1")],
)
def test_kernels_give_the_tokens_of_plain_jax(head_dim: int, topology: str, tmp_path: Path) -> None:
    """A head dim of 64 has its keys and values side by side."""
    folder = write_checkpoint(
        tmp_path, max_position_embeddings=128, num_heads=4, num_kv_heads=2, head_dim=head_dim, seed=11
    )
    sizes = {"chunk_tokens": 32, "num_pages": 65, "num_rows": 4}
    plain, kernels = (EngineShelf(folder, "float32", kernels=name, **sizes) for name in ("xla", "pallas-interpret"))
    requests = _requests()
    expected = answers(plain.engines("mixed=1"), "mixed=1", requests)
    engines = kernels.engines(topology)
    actual = answers(engines, topology, requests, mover_of(engines, kernels.config.num_kv_heads))
    assert {name: answer.tokens for name, answer in actual.items()} == {
        name: answer.tokens for name, answer in expected.items()
    }
    verdict = compare(ReferenceModel(folder), requests, expected, actual, TAU["float32"], TAU_CUT["float32"])
    assert verdict.equal == len(requests)
    assert verdict.max_logprob_gap <= MAX_LOGPROB_GAP["float32"]
