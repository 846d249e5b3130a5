"""The golden checkpoints: a folder beside this file for each, named as here."""

from pathlib import Path
from typing import Any

import msgspec

from runtime.errors import UsageError
from runtime.model_config import load_model_config
from runtime.models.sharding import check_tp

HERE = Path(__file__).parent


class Case(msgspec.Struct, frozen=True, kw_only=True):
    """A small random checkpoint: arguments of `tests.checkpoints.write_checkpoint`, and how it is written.

    `fused` stores experts as transformers 5 computes with them; `version_4` writes config.json in the words of
    transformers 4 and adds the rotary buffers that its early releases saved.
    """

    shape: dict[str, Any]
    lengths: tuple[int, ...] = (75, 17, 1)
    fused: bool = False
    version_4: bool = False


SMALL: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "head_dim": 16,
    "max_position_embeddings": 512,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 5e5,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}

CASES = {
    "grouped": Case(
        shape={"vocab_size": 131, "hidden_size": 48, "intermediate_size": 80, "seed": 1}, lengths=(45, 17, 1)
    ),
    "tied": Case(
        shape={
            "vocab_size": 97,
            "hidden_size": 64,
            "intermediate_size": 72,
            "num_layers": 1,
            "num_heads": 6,
            "num_kv_heads": 1,
            "head_dim": 64,
            "rope_theta": 1e6,
            "tie_word_embeddings": True,
            "seed": 2,
        },
        lengths=(45, 17, 1),
    ),
    "ungrouped": Case(
        shape={
            "vocab_size": 64,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_layers": 3,
            "num_heads": 2,
            "head_dim": 16,
            "seed": 3,
        },
        lengths=(45, 17, 1),
    ),
    "qwen2_window": Case(
        shape=SMALL
        | {
            "num_layers": 3,
            "changes": {
                "use_sliding_window": True,
                "sliding_window": 12,
                "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            },
            "seed": 4,
        }
    ),
    "qwen3": Case(shape=SMALL | {"architecture": "Qwen3ForCausalLM", "tie_word_embeddings": True, "seed": 5}),
    "qwen3_window": Case(
        shape=SMALL
        | {
            "architecture": "Qwen3ForCausalLM",
            "changes": {
                "attention_bias": True,
                "use_sliding_window": True,
                "sliding_window": 16,
                "max_window_layers": 1,
            },
            "seed": 6,
        },
        version_4=True,
    ),
    "llama": Case(
        shape=SMALL
        | {
            "architecture": "LlamaForCausalLM",
            "head_dim": 32,
            "changes": {"rope_parameters": LLAMA3_ROPE},
            "seed": 7,
        },
        lengths=(150, 17, 1),
        version_4=True,
    ),
    "llama_bias": Case(
        shape=SMALL
        | {
            "architecture": "LlamaForCausalLM",
            "head_dim": 8,
            "tie_word_embeddings": True,
            "changes": {
                "attention_bias": True,
                "mlp_bias": True,
                "rope_parameters": LLAMA3_ROPE | {"factor": 32.0, "original_max_position_embeddings": 64},
            },
            "seed": 8,
        }
    ),
    "qwen3_moe": Case(
        shape=SMALL
        | {
            "architecture": "Qwen3MoeForCausalLM",
            "num_layers": 3,
            "num_kv_heads": 4,
            "changes": {
                "num_experts": 8,
                "num_experts_per_tok": 2,
                "moe_intermediate_size": 16,
                "norm_topk_prob": True,
                "mlp_only_layers": [1],
            },
            "seed": 9,
        },
        version_4=True,
    ),
    "qwen3_moe_fused": Case(
        shape=SMALL
        | {
            "architecture": "Qwen3MoeForCausalLM",
            "changes": {
                "num_experts": 4,
                "num_experts_per_tok": 3,
                "moe_intermediate_size": 24,
                "norm_topk_prob": False,
                "decoder_sparse_step": 2,
                "use_sliding_window": True,
                "sliding_window": 20,
            },
            "seed": 10,
        },
        fused=True,
    ),
    "mistral": Case(
        shape=SMALL
        | {
            "architecture": "MistralForCausalLM",
            "changes": {"sliding_window": 16},
            "seed": 11,
        }
    ),
}


def cases_by_tp() -> list[tuple[str, int]]:
    """Every case with each number of devices, of 1, 2 and 4, that its model can be split over."""
    found = list[tuple[str, int]]()
    for case in CASES:
        for tp in (1, 2, 4):
            try:
                check_tp(load_model_config(HERE / case), tp, "")
            except UsageError:
                continue
            found.append((case, tp))
    return found
