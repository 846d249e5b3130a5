"""Well-known models by name: their shapes without their weights, for compiling and timing what is not on this machine.

The values are those of the models' published config.json files; a test counts them to the published sizes.
"""

from collections.abc import Mapping
from types import MappingProxyType

import msgspec

from runtime.model_config import ModelConfig
from runtime.model_parts import RopeScaling

_R1_DISTILL_QWEN = ModelConfig(
    architecture="Qwen2ForCausalLM",
    vocab_size=151936,
    hidden_size=1536,
    intermediate_size=8960,
    num_layers=28,
    num_heads=12,
    num_kv_heads=2,
    head_dim=128,
    rope_theta=10000.0,
    rms_norm_eps=1e-6,
    tie_word_embeddings=False,
    qkv_bias=True,
    max_position_embeddings=131072,
    eos_token_ids=(151643,),
    dtype="bfloat16",
)

_QWEN3 = msgspec.structs.replace(
    _R1_DISTILL_QWEN,
    architecture="Qwen3ForCausalLM",
    hidden_size=4096,
    intermediate_size=12288,
    num_layers=36,
    num_heads=32,
    num_kv_heads=8,
    rope_theta=1000000.0,
    qkv_bias=False,
    qk_norm=True,
    max_position_embeddings=40960,
    eos_token_ids=(151645,),
)

_LLAMA = ModelConfig(
    architecture="LlamaForCausalLM",
    vocab_size=128256,
    hidden_size=4096,
    intermediate_size=14336,
    num_layers=32,
    num_heads=32,
    num_kv_heads=8,
    head_dim=128,
    rope_theta=500000.0,
    rms_norm_eps=1e-5,
    tie_word_embeddings=False,
    qkv_bias=False,
    max_position_embeddings=131072,
    eos_token_ids=(128001, 128008, 128009),
    dtype="bfloat16",
    rope_scaling=RopeScaling(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_tokens=8192),
)

KNOWN_MODELS: Mapping[str, ModelConfig] = MappingProxyType(
    {
        "deepseek-r1-distill-qwen-1.5b": _R1_DISTILL_QWEN,
        "qwen3-8b": _QWEN3,
        "llama-3.1-8b": _LLAMA,
        "qwen3-32b": msgspec.structs.replace(
            _QWEN3, hidden_size=5120, intermediate_size=25600, num_layers=64, num_heads=64
        ),
    }
)
"""Shape by the model's name in small letters."""
