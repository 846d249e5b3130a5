import json
from pathlib import Path
from typing import Any

import jax
import msgspec
import numpy as np
import pytest

from runtime.jax_engine import JaxEngine
from runtime.kv_cache import pool_shape
from runtime.model_config import ModelConfig, load_model_config
from runtime.placement import Placement
from runtime.weights import load_weights
from tests.golden.cases import CASES, HERE
from tests.golden.make_golden import make_folder, random_sequences, reference_greedy, reference_logits
from tests.paged_model import PagedModel
from tests.runtime.engines import PAGE, SPEC, Runner, row_state, segment

TOLERANCE = 1e-4
"""Largest |difference| of any logit, float32."""

TAU = 1e-3
"""Two texts may part where the reference's two best logits are this close, float32."""

BFLOAT16_MEAN = 0.06
"""Largest mean |difference| of logits, whose standard deviation is about 3, when all is bfloat16."""


def golden(case: str) -> tuple[list[np.ndarray], list[np.ndarray]]:
    with np.load(HERE / case / "logits.npz") as arrays:
        count = len(arrays.files) // 2
        return [arrays[f"tokens_{i}"] for i in range(count)], [arrays[f"logits_{i}"] for i in range(count)]


def our_logits(
    folder: Path,
    sequences: list[np.ndarray],
    *,
    dtype: str = "float32",
    config: ModelConfig | None = None,
    **how: int,
) -> list[np.ndarray]:
    config = config or load_model_config(folder)
    params = load_weights(folder, config, dtype)
    longest = max(map(len, sequences))
    model = PagedModel(params, config, num_sequences=len(sequences), max_tokens=longest, page_size=8)
    return model.logits(sequences, **how)


def worst(got: list[np.ndarray], want: list[np.ndarray]) -> float:
    return max(float(np.abs(ours - theirs).max()) for ours, theirs in zip(got, want, strict=True))


def our_greedy(folder: Path, prompt: list[int], num_tokens: int, tp: int) -> list[int]:
    """What an engine of `tp` devices samples greedily after the prompt, which is prefilled in two chunks."""
    config = load_model_config(folder)
    spec = msgspec.structs.replace(
        SPEC,
        num_rows=2,
        max_context_tokens=len(prompt) + num_tokens,
        vocab_size=config.vocab_size,
        page_bytes=pool_shape(config, PAGE, "cpu").page_bytes,
    )
    devices = jax.devices()[:tp]
    params = load_weights(folder, config, "float32", Placement(devices))
    runner = Runner(JaxEngine(config, params, spec, role="mixed", devices=devices))
    tokens, pages = tuple(prompt), range(1, 1 + spec.pages_for(len(prompt) + num_tokens))
    runner.engine.set_rows([row_state(0, tokens, pages)])
    runner.run(prefill=(segment(tokens, pages, 0, 5),))
    runner.run(prefill=(segment(tokens, pages, 5, rows=(0,)),))
    for _ in range(num_tokens - 1):
        runner.run(decode=(0,))
    return runner.tokens(0)


def assert_same_text(folder: Path, prompt: list[int], want: list[int], tp: int = 1) -> None:
    """The engine's greedy text is `want`, or parts from it where the two best logits are within TAU."""
    got = our_greedy(folder, prompt, len(want), tp)
    parts = [index for index, (ours, theirs) in enumerate(zip(got, want, strict=True)) if ours != theirs]
    if parts:
        shared = np.array(prompt + want[: parts[0]])
        second, first = np.sort(our_logits(folder, [shared], chunk=64)[0][-1])[-2:]
        assert first - second < TAU, f"token {parts[0]} differs although its margin is {first - second}"


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("how", [{"chunk": 13}, {"chunk": 1, "num_prefill": 0}], ids=str)
def test_logits_equal_the_golden_ones(case: str, how: dict[str, int]) -> None:
    sequences, want = golden(case)
    assert np.std(want[0]) > 1
    assert worst(our_logits(HERE / case, sequences, **how), want) <= TOLERANCE


@pytest.mark.parametrize(
    ("case", "tp"), [*((case, 1) for case in CASES), ("grouped", 4), ("llama", 2), ("qwen3_moe", 4)]
)
def test_greedy_text_equals_the_golden_one(case: str, tp: int) -> None:
    text = json.loads((HERE / case / "greedy.json").read_text())
    assert len(text["continuation"]) == 200
    assert_same_text(HERE / case, text["prompt"], text["continuation"], tp)


@pytest.mark.parametrize("case", CASES)
def test_logits_in_bfloat16_are_near_the_golden_ones(case: str) -> None:
    sequences, want = golden(case)
    got = our_logits(HERE / case, sequences, dtype="bfloat16", chunk=40, num_prefill=60)
    assert np.mean(np.abs(np.concatenate(got) - np.concatenate(want))) < BFLOAT16_MEAN


@pytest.mark.parametrize(
    ("case", "change"),
    [
        ("qwen2_window", {"windows": ()}),
        ("qwen2_window", {"windows": (12, 12, 12)}),
        ("qwen2_window", {"windows": (13, None, 13)}),
        ("qwen3", {"qk_norm": False}),
        ("qwen3_window", {"windows": ()}),
        ("llama", {"rope_scaling": None}),
        ("llama_bias", {"rope_scaling": None}),
        ("qwen3_moe", {"experts.renormalize": False}),
        ("qwen3_moe", {"experts.num_experts_per_token": 1}),
        ("qwen3_moe_fused", {"windows": ()}),
        ("mistral", {"windows": ()}),
    ],
)
def test_what_makes_a_family_shows_in_the_golden_logits(case: str, change: dict[str, Any]) -> None:
    sequences, want = golden(case)
    config = load_model_config(HERE / case)
    changed = msgspec.structs.replace(config, **{key: value for key, value in change.items() if "." not in key})
    if config.experts is not None:
        inner = {key.removeprefix("experts."): value for key, value in change.items() if key.startswith("experts.")}
        changed = msgspec.structs.replace(changed, experts=msgspec.structs.replace(config.experts, **inner))
    params = load_weights(HERE / case, config, "float32")
    model = PagedModel(params, changed, num_sequences=len(sequences), max_tokens=max(map(len, sequences)))
    assert worst(model.logits(sequences, chunk=160), want) > 100 * TOLERANCE


def test_golden_files_stay_small() -> None:
    files = [file for file in HERE.rglob("*") if file.is_file() and "__pycache__" not in file.parts]
    assert max(file.stat().st_size for file in files) < 3e5
    assert sum(file.stat().st_size for file in files) < 3e6


@pytest.mark.parametrize("case", CASES)
def test_a_fresh_checkpoint_equals_hugging_face_live(tmp_path: Path, case: str) -> None:
    pytest.importorskip("torch")
    fresh = msgspec.structs.replace(CASES[case], shape=CASES[case].shape | {"seed": 100})
    make_folder(tmp_path, fresh)
    vocab_size = fresh.shape["vocab_size"]
    sequences = random_sequences(vocab_size, (150, 31))
    want = reference_logits(tmp_path, sequences)
    assert worst(our_logits(tmp_path, sequences, chunk=40, num_prefill=100), want) <= TOLERANCE
    prompt = sequences[1][:11].tolist()
    assert_same_text(tmp_path, prompt, reference_greedy(tmp_path, prompt, 200))
