"""Models to time without a checkpoint: public shapes, filled with small random weights."""

import msgspec

from runtime.errors import UsageError
from runtime.known_models import KNOWN_MODELS
from runtime.model_config import ModelConfig

_QWEN2 = msgspec.structs.replace(KNOWN_MODELS["deepseek-r1-distill-qwen-1.5b"], eos_token_ids=())

SHAPES: dict[str, ModelConfig] = {
    "r1-1.5b": _QWEN2,
    "0.3b": msgspec.structs.replace(
        _QWEN2,
        vocab_size=32768,
        hidden_size=1024,
        intermediate_size=4096,
        num_layers=16,
        num_heads=8,
        max_position_embeddings=8192,
    ),
    "demo": msgspec.structs.replace(
        _QWEN2,
        vocab_size=512,
        hidden_size=128,
        intermediate_size=384,
        num_layers=4,
        num_heads=4,
        head_dim=32,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
    ),
}
"""DeepSeek-R1-Distill-Qwen-1.5B, a small one of the same family, and the embedded demo model."""


def named_shape(name: str) -> ModelConfig:
    """The config of a named shape. Raises UsageError."""
    if name not in SHAPES:
        raise UsageError(f"--shape {name!r}: allowed: {', '.join(SHAPES)}")
    return SHAPES[name]
