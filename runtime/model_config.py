"""What a model is: its shape and family, read from the folder that transformers 4 or 5 wrote.

Used once per start; everything later sees only the frozen `ModelConfig`. Nothing is guessed: what the
decoder cannot compute exactly is refused here, with one line that names file, key, value and what is allowed.
"""

from pathlib import Path

import msgspec

from runtime.model_folder import JsonObject, read_json
from runtime.model_parts import Experts, RopeScaling, WindowLayers, read_experts, read_rope, read_windows


class Family(msgspec.Struct, frozen=True, kw_only=True):
    """What an architecture's name implies and config.json does not say.

    A family with an `attention_bias_key` or `mlp_bias_key` takes that flag of config.json for biases on all of the
    block's projections. `head_dim` is what the key's absence means; None is hidden_size / num_attention_heads.
    """

    model_type: str
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    head_dim: int | None = None
    qkv_bias: bool = False
    attention_bias_key: str | None = None
    mlp_bias_key: str | None = None
    qk_norm: bool = False
    has_experts: bool = False
    window_layers: WindowLayers = "none"
    window_switch: str | None = None


FAMILIES = {
    "Qwen2ForCausalLM": Family(
        model_type="qwen2", qkv_bias=True, window_layers="upper", window_switch="use_sliding_window"
    ),
    "Qwen3ForCausalLM": Family(
        model_type="qwen3",
        head_dim=128,
        attention_bias_key="attention_bias",
        qk_norm=True,
        window_layers="upper",
        window_switch="use_sliding_window",
    ),
    "Qwen3MoeForCausalLM": Family(
        model_type="qwen3_moe",
        attention_bias_key="attention_bias",
        qk_norm=True,
        has_experts=True,
        window_layers="all",
        window_switch="use_sliding_window",
    ),
    "LlamaForCausalLM": Family(model_type="llama", attention_bias_key="attention_bias", mlp_bias_key="mlp_bias"),
    "MistralForCausalLM": Family(model_type="mistral", window_layers="all"),
}
"""Every family that the decoder computes, by the name that config.json gives it; docs/models.md says how to add one."""

COMPUTE_DTYPES = {"float32": "float32", "bfloat16": "bfloat16", "float16": "bfloat16"}
"""Type of a checkpoint: type to compute in."""


class ModelConfig(msgspec.Struct, frozen=True, kw_only=True):
    """A decoder's shape. Hashable, so that it may be a static argument of jitted functions.

    `dtype` is the type to compute in unless the operator says otherwise, "bfloat16" or "float32";
    checkpoints in float16 are computed in bfloat16. `eos_token_ids` may be empty. `windows` has one entry per
    layer, or none if no layer has a window; the layers that `experts` names have experts instead of a dense block.
    """

    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rope_theta: float
    rms_norm_eps: float
    tie_word_embeddings: bool
    qkv_bias: bool
    max_position_embeddings: int
    eos_token_ids: tuple[int, ...]
    dtype: str
    o_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    rope_scaling: RopeScaling | None = None
    windows: tuple[int | None, ...] = ()
    experts: Experts | None = None

    def window(self, layer: int) -> int | None:
        """Tokens that a token of this layer sees, itself included; None for its whole context."""
        return self.windows[layer] if self.windows else None

    def is_sparse(self, layer: int) -> bool:
        """Whether the layer's feed-forward block is made of experts."""
        return self.experts is not None and layer in self.experts.layers


class GenerationDefaults(msgspec.Struct, frozen=True, kw_only=True):
    """Sampling of a request that does not say. The values here hold where the model states none of its own.

    Temperature 0 is greedy; `top_k` 0 and -1 are off.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0


def load_model_config(folder: Path) -> ModelConfig:
    """Reads config.json, and the end-of-text tokens of generation_config.json if there is one.

    Raises:
        UsageError: the folder or the file is missing, not JSON, incomplete, or describes a model that is not
            supported; one line.
    """
    path = folder / "config.json"
    config = JsonObject(path, read_json(path))
    architecture, family = _family(config)
    _refuse_unsupported(config)
    num_heads = config.count("num_attention_heads")
    num_kv_heads = config.count("num_key_value_heads", num_heads)
    if num_heads % num_kv_heads:
        raise config.refuse("num_key_value_heads", f"it must divide num_attention_heads, {num_heads}")
    vocab_size = config.count("vocab_size")
    num_layers = config.count("num_hidden_layers")
    windows = read_windows(config, family.window_layers, family.window_switch, num_layers)
    rope = read_rope(config, family.rope_theta)
    attention_bias = _flag(config, family.attention_bias_key)
    return ModelConfig(
        architecture=architecture,
        vocab_size=vocab_size,
        hidden_size=config.count("hidden_size"),
        intermediate_size=config.count("intermediate_size"),
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=_head_dim(config, family, num_heads),
        rope_theta=rope.theta,
        rms_norm_eps=config.positive("rms_norm_eps", family.rms_norm_eps),
        tie_word_embeddings=config.flag("tie_word_embeddings", False),
        qkv_bias=family.qkv_bias or attention_bias,
        max_position_embeddings=config.count("max_position_embeddings"),
        eos_token_ids=_eos_token_ids(config, folder, vocab_size),
        dtype=_dtype(config),
        o_bias=attention_bias,
        mlp_bias=_flag(config, family.mlp_bias_key),
        qk_norm=family.qk_norm,
        rope_scaling=rope.scaling,
        windows=windows if any(windows) else (),
        experts=read_experts(config, num_layers) if family.has_experts else None,
    )


def load_generation_defaults(folder: Path) -> GenerationDefaults:
    """Reads the sampling defaults of generation_config.json, if there is one.

    `do_sample: false` makes temperature 0 the default, whatever temperature the file gives, so that a request
    is answered greedily unless it brings a temperature of its own. Without `do_sample` the file's temperature
    holds. Values may be what a client may ask for.

    Raises:
        UsageError: the file is not JSON, or a value is of a wrong type or out of range; one line.
    """
    generation = _generation(folder)
    if generation is None:
        return GenerationDefaults()
    plain = GenerationDefaults()
    temperature = _number(generation, "temperature", 0, 2, plain.temperature)
    top_p = _number(generation, "top_p", 0, 1, plain.top_p)
    if top_p == 0:
        raise generation.refuse("top_p", "it must be above 0 and at most 1")
    return GenerationDefaults(
        temperature=temperature if generation.flag("do_sample", True) else 0.0,
        top_p=top_p,
        top_k=_top_k(generation, plain.top_k),
        min_p=_number(generation, "min_p", 0, 1, plain.min_p),
        repetition_penalty=_number(generation, "repetition_penalty", 0.01, 10, plain.repetition_penalty),
    )


def _number(generation: JsonObject, key: str, low: float, high: float, default: float) -> float:
    value = generation.get(key)
    if value is None:
        return default
    if not isinstance(value, int | float) or isinstance(value, bool) or not low <= value <= high:
        raise generation.refuse(key, f"it must be a number between {low:g} and {high:g}")
    return float(value)


def _top_k(generation: JsonObject, default: int) -> int:
    value = generation.get("top_k")
    if value is None:
        return default
    if not isinstance(value, int) or isinstance(value, bool) or value < -1:
        raise generation.refuse("top_k", "it must be a positive integer, or 0 or -1 for off")
    return value


def _generation(folder: Path) -> JsonObject | None:
    path = folder / "generation_config.json"
    return JsonObject(path, read_json(path)) if path.exists() else None


def _family(config: JsonObject) -> tuple[str, Family]:
    supported = f"supported: {', '.join(FAMILIES)}"
    names = config.get("architectures")
    if names is None:
        model_type = config.get("model_type")
        for name, family in FAMILIES.items():
            if family.model_type == model_type:
                return name, family
        raise config.refuse("model_type", supported)
    if not isinstance(names, list) or len(names) != 1 or names[0] not in FAMILIES:
        raise config.refuse("architectures", supported)
    return names[0], FAMILIES[names[0]]


def _refuse_unsupported(config: JsonObject) -> None:
    if config.get("hidden_act") not in (None, "silu"):
        raise config.refuse("hidden_act", "supported: silu")
    if config.get("quantization_config") is not None:
        raise config.refuse("quantization_config", "supported: none, weights in bfloat16, float16 or float32")


def _flag(config: JsonObject, key: str | None) -> bool:
    return key is not None and config.flag(key, False)


def _head_dim(config: JsonObject, family: Family, num_heads: int) -> int:
    if config.get("head_dim") is not None or family.head_dim is not None:
        head_dim = config.count("head_dim", family.head_dim)
    else:
        hidden_size = config.count("hidden_size")
        if hidden_size % num_heads:
            raise config.refuse("hidden_size", f"it must be a multiple of num_attention_heads, {num_heads}")
        head_dim = hidden_size // num_heads
    if head_dim % 2:
        raise config.refuse("head_dim", "it must be even", head_dim)
    return head_dim


def _eos_token_ids(config: JsonObject, folder: Path, vocab_size: int) -> tuple[int, ...]:
    generation = _generation(folder)
    source = config if generation is None or generation.get("eos_token_id") is None else generation
    ids = source.token_ids("eos_token_id")
    if any(token >= vocab_size for token in ids):
        raise source.refuse("eos_token_id", f"it must be below vocab_size, {vocab_size}")
    return ids


def _dtype(config: JsonObject) -> str:
    key = "dtype" if config.get("dtype") is not None else "torch_dtype"
    value = config.get(key)
    name = "float32" if value is None else str(value).removeprefix("torch.")
    if name not in COMPUTE_DTYPES:
        raise config.refuse(key, f"supported: {', '.join(COMPUTE_DTYPES)}")
    return COMPUTE_DTYPES[name]
