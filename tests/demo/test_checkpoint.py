"""The demo checkpoint: its size, its configuration, its tensors, and that it still computes."""

from __future__ import annotations

import json

import numpy as np
import pytest
from safetensors.numpy import load_file
from transformers import AutoConfig

from runtime.demo import MODEL_DIR
from runtime.demo.evaluate import boxed, generate, load_checkpoint
from runtime.demo.examples import ROW_LENGTH, RowPacker, chat_prompt
from runtime.demo.network import init_params
from runtime.demo.phrasing import REASONING_SUFFIX


def test_weights_fit_in_eight_megabytes() -> None:
    assert (MODEL_DIR / "model.safetensors").stat().st_size <= 8_000_000


def test_transformers_reads_the_configuration() -> None:
    config = AutoConfig.from_pretrained(MODEL_DIR)
    assert config.model_type == "qwen2"
    assert config.architectures == ["Qwen2ForCausalLM"]
    assert config.max_position_embeddings >= 2048
    raw = json.loads((MODEL_DIR / "config.json").read_text(encoding="utf-8"))
    assert raw["rope_theta"] == raw["rope_parameters"]["rope_theta"]
    assert raw["torch_dtype"] == raw["dtype"] == "bfloat16"
    generation = json.loads((MODEL_DIR / "generation_config.json").read_text(encoding="utf-8"))
    assert (generation["temperature"], generation["top_p"]) == (0.6, 0.95)
    assert generation["eos_token_id"] == raw["eos_token_id"]


def test_tensors_have_the_names_and_shapes_of_the_configuration() -> None:
    params, shape, tokenizer, eos_ids = load_checkpoint(MODEL_DIR)
    expected = {name: value.shape for name, value in init_params(shape, 0).items()}
    assert {name: value.shape for name, value in params.items()} == expected
    assert {str(array.dtype) for array in load_file(MODEL_DIR / "model.safetensors").values()} == {"bfloat16"}
    assert eos_ids == [tokenizer.token_to_id("<|im_end|>"), tokenizer.token_to_id("<|endoftext|>")]


@pytest.mark.parametrize("rounded", [True, False])
def test_it_solves_problems_step_by_step(rounded: bool) -> None:
    params, shape, tokenizer, eos_ids = load_checkpoint(MODEL_DIR)
    asked = {"What is 37 + 58?": "95", "Compute 12*7": "84", "37+58=": "95", "Calculate 96 / 8.": "12"}
    prompts = [chat_prompt(question + suffix) for question in asked for suffix in ("", REASONING_SUFFIX)]
    texts = generate(params, shape, tokenizer, eos_ids, prompts, max_tokens=160, rounded=rounded)
    assert all(text.startswith("<think>\n") and "</think>" in text for text in texts)
    assert [boxed(text) for text in texts] == [answer for answer in asked.values() for _ in range(2)]


def test_packed_rows_keep_examples_apart_and_count_only_answers() -> None:
    _, _, tokenizer, _ = load_checkpoint(MODEL_DIR)
    rows = RowPacker(tokenizer, seed=1, rows=4, waiting=32).next()
    assert rows.tokens.shape == (4, ROW_LENGTH)
    assert not rows.weights[rows.segments == 0].any()
    for row in range(4):
        for segment in range(1, int(rows.segments[row].max()) + 1):
            inside = rows.segments[row] == segment
            counted = np.flatnonzero(rows.weights[row][inside])
            text = tokenizer.decode(rows.tokens[row][inside][counted].tolist(), skip_special_tokens=False)
            assert text.lstrip().startswith("<think>")
            assert text.endswith(("<|im_end|>", "<|endoftext|>"))
            assert counted.tolist() == list(range(counted[0], counted[-1] + 1))
