"""The parts of config.json in which families differ most: rotary scaling, sliding windows, experts.

Used once per start by `model_config`. Each reader returns a hashable value or refuses with one line that names
file, key, value and what is allowed; what a key's absence means is the meaning that transformers gives it.
"""

from typing import Literal

import msgspec

from runtime.model_folder import JsonObject

WindowLayers = Literal["none", "all", "upper"]
"""Which layers of a family a sliding window applies to: none, all, or those from `max_window_layers` on."""

SLIDING, FULL = "sliding_attention", "full_attention"
ROPE_SECTIONS = ("rope_scaling", "rope_parameters")
"""Where transformers 4 and 5 write what they know about rotary embedding."""


class RopeScaling(msgspec.Struct, frozen=True, kw_only=True):
    """Llama 3's stretching of rotary wavelengths: long ones by `factor`, short ones not at all, smoothly between.

    Wavelengths are long above `original_tokens / low_freq_factor` tokens and short below
    `original_tokens / high_freq_factor`.
    """

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_tokens: int


class Rope(msgspec.Struct, frozen=True, kw_only=True):
    """Base of the rotary angles, and how they are stretched beyond the length of pretraining."""

    theta: float
    scaling: RopeScaling | None


class Experts(msgspec.Struct, frozen=True, kw_only=True):
    """The sparse feed-forward blocks: how many experts, how many of them a token visits, and in which layers.

    `renormalize` makes the visited experts' probabilities sum to 1. Layers not listed have a dense block.
    """

    num_experts: int
    num_experts_per_token: int
    intermediate_size: int
    renormalize: bool
    layers: tuple[int, ...]


def read_rope(config: JsonObject, default_theta: float) -> Rope:
    """Rotary embedding from `rope_theta` with `rope_scaling`, or from `rope_parameters`. Raises UsageError."""
    theta = config.positive("rope_theta", default_theta)
    _refuse_partial(config)
    found = [
        Rope(theta=section.positive("rope_theta", theta), scaling=_scaling(config, key, section))
        for key in ROPE_SECTIONS
        if (section := config.section(key)) is not None
    ]
    if len(set(found)) > 1:
        raise config.refuse("rope_parameters", "it must agree with rope_scaling, or one of them be null")
    return found[0] if found else Rope(theta=theta, scaling=None)


def _scaling(config: JsonObject, key: str, section: JsonObject) -> RopeScaling | None:
    _refuse_partial(section)
    for kind in (FULL, SLIDING):
        if section.get(kind) is not None:
            raise config.refuse(key, "supported: one for all layers", kind)
    kind = section.get("rope_type") or section.get("type") or "default"
    if kind == "default":
        return None
    if kind != "llama3":
        raise config.refuse(key, "supported: rope_type 'default' or 'llama3'", kind)
    scaling = RopeScaling(
        factor=section.positive("factor"),
        low_freq_factor=section.positive("low_freq_factor"),
        high_freq_factor=section.positive("high_freq_factor"),
        original_tokens=section.count("original_max_position_embeddings"),
    )
    if scaling.high_freq_factor <= scaling.low_freq_factor:
        raise section.refuse("high_freq_factor", f"it must be above low_freq_factor, {scaling.low_freq_factor:g}")
    return scaling


def _refuse_partial(section: JsonObject) -> None:
    if section.get("partial_rotary_factor") not in (None, 1):
        raise section.refuse("partial_rotary_factor", "supported: 1")


def read_windows(
    config: JsonObject, layers: WindowLayers, switch: str | None, num_layers: int
) -> tuple[int | None, ...]:
    """Each layer's sliding window in tokens, the token itself included; None where the whole context is seen.

    `switch` is the flag that a family's `sliding_window` depends on, None if its presence is enough.
    Raises UsageError.
    """
    window = None if config.get("sliding_window") is None else config.count("sliding_window")
    if layers == "none" and window is not None:
        raise config.refuse("sliding_window", "supported: null, as this family has no sliding window")
    if switch is not None and not config.flag(switch, False):
        window = None
    first = config.count("max_window_layers", 28, minimum=0) if layers == "upper" else 0
    slides = [window is not None and index >= first for index in range(num_layers)]
    kinds = _layer_types(config, num_layers)
    if kinds is not None:
        written = [kind == SLIDING for kind in kinds]
        if layers == "upper" and window is not None:
            slides = written
        elif written != slides:
            wrong, right = (SLIDING, FULL) if window is None else (FULL, SLIDING)
            raise config.refuse("layer_types", f"supported with this sliding_window: {right}", wrong)
    # A window as long as the longest context never hides anything.
    hides = window is not None and window < config.count("max_position_embeddings")
    return tuple(window if slide and hides else None for slide in slides)


def _layer_types(config: JsonObject, num_layers: int) -> list[str] | None:
    kinds = config.get("layer_types")
    if kinds is None:
        return None
    unknown = sorted({str(kind) for kind in kinds} - {FULL, SLIDING}) if isinstance(kinds, list) else [str(kinds)]
    if unknown:
        raise config.refuse("layer_types", f"supported: {FULL}, {SLIDING}", ", ".join(unknown))
    if len(kinds) != num_layers:
        raise config.refuse("layer_types", f"it must have one entry per layer, {num_layers}", len(kinds))
    return list(kinds)


def read_experts(config: JsonObject, num_layers: int) -> Experts:
    """The sparse blocks of a family that has them. Raises UsageError."""
    renamed = config.get("num_local_experts")  # by transformers 5
    num_experts = config.count("num_experts" if renamed is None or config.get("num_experts") else "num_local_experts")
    if renamed not in (None, num_experts):
        raise config.refuse("num_local_experts", f"it must equal num_experts, {num_experts}")
    per_token = config.count("num_experts_per_tok")
    if per_token > num_experts:
        raise config.refuse("num_experts_per_tok", f"it must be at most the number of experts, {num_experts}")
    dense = config.get("mlp_only_layers") or []
    if not isinstance(dense, list) or not all(type(index) is int and 0 <= index < num_layers for index in dense):
        raise config.refuse("mlp_only_layers", f"it must be a list of layers from 0 to {num_layers - 1}")
    step = config.count("decoder_sparse_step", 1)
    return Experts(
        num_experts=num_experts,
        num_experts_per_token=per_token,
        intermediate_size=config.count("moe_intermediate_size"),
        renormalize=config.flag("norm_topk_prob", False),
        layers=tuple(index for index in range(num_layers) if index not in dense and (index + 1) % step == 0),
    )
