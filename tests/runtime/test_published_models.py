"""The config.json of published models, as their folders have them: read, and counted to their published sizes."""

import math
from pathlib import Path
from typing import Any

import jax
import pytest

from runtime.model_config import load_model_config
from runtime.model_parts import RopeScaling
from runtime.models.parameters import abstract_params
from tests.checkpoints import write_json

COMMON = {"hidden_act": "silu", "attention_dropout": 0.0, "use_cache": True, "torch_dtype": "bfloat16"}
MODELS: dict[str, tuple[dict[str, Any], int]] = {
    "DeepSeek-R1-Distill-Qwen-1.5B": (
        {
            "architectures": ["Qwen2ForCausalLM"],
            "eos_token_id": 151643,
            "hidden_size": 1536,
            "intermediate_size": 8960,
            "max_position_embeddings": 131072,
            "max_window_layers": 21,
            "model_type": "qwen2",
            "num_attention_heads": 12,
            "num_hidden_layers": 28,
            "num_key_value_heads": 2,
            "rms_norm_eps": 1e-06,
            "rope_theta": 10000,
            "sliding_window": 4096,
            "tie_word_embeddings": False,
            "use_mrope": False,
            "use_sliding_window": False,
            "vocab_size": 151936,
        },
        1_777_088_000,
    ),
    "Qwen3-0.6B": (
        {
            "architectures": ["Qwen3ForCausalLM"],
            "attention_bias": False,
            "eos_token_id": 151645,
            "head_dim": 128,
            "hidden_size": 1024,
            "intermediate_size": 3072,
            "max_position_embeddings": 40960,
            "max_window_layers": 28,
            "model_type": "qwen3",
            "num_attention_heads": 16,
            "num_hidden_layers": 28,
            "num_key_value_heads": 8,
            "rms_norm_eps": 1e-06,
            "rope_scaling": None,
            "rope_theta": 1000000,
            "sliding_window": None,
            "tie_word_embeddings": True,
            "use_sliding_window": False,
            "vocab_size": 151936,
        },
        596_049_920,
    ),
    "Qwen3-30B-A3B": (
        {
            "architectures": ["Qwen3MoeForCausalLM"],
            "attention_bias": False,
            "decoder_sparse_step": 1,
            "eos_token_id": 151645,
            "head_dim": 128,
            "hidden_size": 2048,
            "intermediate_size": 6144,
            "max_position_embeddings": 40960,
            "max_window_layers": 48,
            "mlp_only_layers": [],
            "model_type": "qwen3_moe",
            "moe_intermediate_size": 768,
            "norm_topk_prob": True,
            "num_attention_heads": 32,
            "num_experts": 128,
            "num_experts_per_tok": 8,
            "num_hidden_layers": 48,
            "num_key_value_heads": 4,
            "output_router_logits": False,
            "rms_norm_eps": 1e-06,
            "rope_scaling": None,
            "rope_theta": 1000000.0,
            "router_aux_loss_coef": 0.001,
            "sliding_window": None,
            "tie_word_embeddings": False,
            "use_sliding_window": False,
            "vocab_size": 151936,
        },
        30_532_122_624,
    ),
    "Llama-3.2-1B-Instruct": (
        {
            "architectures": ["LlamaForCausalLM"],
            "attention_bias": False,
            "eos_token_id": [128001, 128008, 128009],
            "head_dim": 64,
            "hidden_size": 2048,
            "intermediate_size": 8192,
            "max_position_embeddings": 131072,
            "mlp_bias": False,
            "model_type": "llama",
            "num_attention_heads": 32,
            "num_hidden_layers": 16,
            "num_key_value_heads": 8,
            "pretraining_tp": 1,
            "rms_norm_eps": 1e-05,
            "rope_scaling": {
                "factor": 32.0,
                "high_freq_factor": 4.0,
                "low_freq_factor": 1.0,
                "original_max_position_embeddings": 8192,
                "rope_type": "llama3",
            },
            "rope_theta": 500000.0,
            "tie_word_embeddings": True,
            "vocab_size": 128256,
        },
        1_235_814_400,
    ),
    "Mistral-7B-v0.1": (
        {
            "architectures": ["MistralForCausalLM"],
            "eos_token_id": 2,
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "max_position_embeddings": 32768,
            "model_type": "mistral",
            "num_attention_heads": 32,
            "num_hidden_layers": 32,
            "num_key_value_heads": 8,
            "rms_norm_eps": 1e-05,
            "rope_theta": 10000.0,
            "sliding_window": 4096,
            "tie_word_embeddings": False,
            "vocab_size": 32000,
        },
        7_241_732_096,
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_published_model_has_its_published_size(tmp_path: Path, name: str) -> None:
    written, num_parameters = MODELS[name]
    write_json(tmp_path / "config.json", COMMON | written)
    config = load_model_config(tmp_path)
    leaves = jax.tree.leaves(abstract_params(config, config.dtype))
    assert sum(math.prod(leaf.shape) for leaf in leaves) == num_parameters
    assert config.dtype == "bfloat16"


def test_a_window_that_is_switched_off_is_none(tmp_path: Path) -> None:
    write_json(tmp_path / "config.json", COMMON | MODELS["DeepSeek-R1-Distill-Qwen-1.5B"][0])
    assert load_model_config(tmp_path).windows == ()


def test_mistral_has_a_window_on_every_layer_or_none(tmp_path: Path) -> None:
    first = MODELS["Mistral-7B-v0.1"][0]
    write_json(tmp_path / "config.json", COMMON | first)
    assert load_model_config(tmp_path).windows == (4096,) * 32
    write_json(tmp_path / "config.json", COMMON | first | {"sliding_window": None})  # from v0.2 on
    assert load_model_config(tmp_path).windows == ()


def test_llama_3_has_three_ends_of_text_and_stretched_angles(tmp_path: Path) -> None:
    write_json(tmp_path / "config.json", COMMON | MODELS["Llama-3.2-1B-Instruct"][0])
    config = load_model_config(tmp_path)
    assert config.eos_token_ids == (128001, 128008, 128009)
    assert config.rope_scaling == RopeScaling(
        factor=32.0, low_freq_factor=1.0, high_freq_factor=4.0, original_tokens=8192
    )
