import json
import math
from pathlib import Path
from typing import Any

import pytest

from runtime.errors import UsageError
from runtime.model_config import GenerationDefaults, load_generation_defaults, load_model_config
from runtime.model_parts import Experts, RopeScaling
from tests.checkpoints import write_json

BASE: dict[str, Any] = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "vocab_size": 1000,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
    "hidden_act": "silu",
    "eos_token_id": 7,
    "use_sliding_window": False,
    "sliding_window": None,
}
AS_VERSION_4 = BASE | {"rope_theta": 5e5, "rope_scaling": None, "torch_dtype": "bfloat16"}
AS_VERSION_5 = BASE | {"rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}, "dtype": "bfloat16"}


LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 256,
}
WINDOW = {"use_sliding_window": True, "sliding_window": 16}
SPARSE = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 32}


def family(name: str, model_type: str, **more: Any) -> dict[str, Any]:
    """A config of another family."""
    without = {key: value for key, value in BASE.items() if key not in ("use_sliding_window", "sliding_window")}
    return without | {"architectures": [name], "model_type": model_type} | more


QWEN3 = family("Qwen3ForCausalLM", "qwen3", head_dim=16)
LLAMA = family("LlamaForCausalLM", "llama")
MISTRAL = family("MistralForCausalLM", "mistral", sliding_window=16)
QWEN3_MOE = family("Qwen3MoeForCausalLM", "qwen3_moe", **SPARSE)


def folder_with(tmp_path: Path, config: dict[str, Any], generation: dict[str, Any] | None = None) -> Path:
    write_json(tmp_path / "config.json", config)
    if generation is not None:
        write_json(tmp_path / "generation_config.json", generation)
    return tmp_path


@pytest.mark.parametrize("written", [AS_VERSION_4, AS_VERSION_5, AS_VERSION_4 | AS_VERSION_5])
def test_both_majors_of_transformers_read_the_same(tmp_path: Path, written: dict[str, Any]) -> None:
    config = load_model_config(folder_with(tmp_path, written))
    assert (config.rope_theta, config.dtype) == (5e5, "bfloat16")
    assert (config.num_layers, config.num_heads, config.num_kv_heads, config.head_dim) == (3, 4, 2, 16)
    assert (config.vocab_size, config.hidden_size, config.intermediate_size) == (1000, 64, 128)
    assert (config.rms_norm_eps, config.tie_word_embeddings, config.qkv_bias) == (1e-5, True, True)
    assert config.eos_token_ids == (7,)
    assert hash(config) == hash(load_model_config(tmp_path))


@pytest.mark.parametrize(
    ("generation", "eos"),
    [(None, (7,)), ({}, (7,)), ({"eos_token_id": 9}, (9,)), ({"eos_token_id": [9, 8]}, (9, 8))],
)
def test_generation_config_decides_the_end_of_text(
    tmp_path: Path, generation: dict[str, Any] | None, eos: tuple[int, ...]
) -> None:
    assert load_model_config(folder_with(tmp_path, BASE, generation)).eos_token_ids == eos


def test_a_model_may_have_no_end_of_text(tmp_path: Path) -> None:
    assert load_model_config(folder_with(tmp_path, BASE | {"eos_token_id": None})).eos_token_ids == ()


@pytest.mark.parametrize(
    ("dtype", "computed"), [(None, "float32"), ("float32", "float32"), ("torch.float16", "bfloat16")]
)
def test_the_type_to_compute_in(tmp_path: Path, dtype: str | None, computed: str) -> None:
    assert load_model_config(folder_with(tmp_path, BASE | {"torch_dtype": dtype})).dtype == computed


@pytest.mark.parametrize(
    "change",
    [
        {"use_sliding_window": False, "sliding_window": 16},
        {"use_sliding_window": True, "sliding_window": None},
        {"use_sliding_window": True, "sliding_window": 4096},
        {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 3},
        {"use_sliding_window": True, "sliding_window": 16, "layer_types": ["full_attention"] * 3},
        {"rope_scaling": {"type": "default"}},
    ],
)
def test_what_is_written_but_not_in_use_is_accepted(tmp_path: Path, change: dict[str, Any]) -> None:
    assert load_model_config(folder_with(tmp_path, BASE | change)).num_layers == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architectures": ["GPT2LMHeadModel"]}, "architectures is ['GPT2LMHeadModel']; supported: Qwen2"),
        ({"architectures": None, "model_type": "gpt2"}, "model_type is 'gpt2'; supported: Qwen2ForCausalLM"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "rope_scaling is 'yarn'; supported:"),
        ({"rope_parameters": {"rope_type": "linear"}}, "rope_parameters is 'linear'; supported:"),
        ({"rope_parameters": {"rope_theta": "x"}}, "rope_theta is 'x'; it must be a number above 0"),
        (
            {"rope_parameters": {"full_attention": {"rope_theta": 1e6}, "sliding_attention": {"rope_theta": 1e4}}},
            "rope_parameters is 'full_attention'; supported: one for all layers",
        ),
        ({"rope_parameters": 3}, "rope_parameters is 3; it must be an object or null"),
        (
            {"layer_types": ["linear_attention"]},
            "layer_types is 'linear_attention'; supported: full_attention, sliding",
        ),
        ({"layer_types": 3}, "layer_types is '3'; supported: full_attention, sliding_attention"),
        ({"layer_types": ["full_attention"]}, "layer_types is 1; it must have one entry per layer, 3"),
        (
            {"layer_types": ["sliding_attention"] * 3},
            "layer_types is 'sliding_attention'; supported with this sliding_window: full_attention",
        ),
        (WINDOW | {"sliding_window": 0}, "sliding_window is 0; it must be a positive integer"),
        (WINDOW | {"max_window_layers": -1}, "max_window_layers is -1; it must be an integer, 0 or more"),
        ({"rope_scaling": LLAMA3 | {"factor": None}}, "factor is missing"),
        (
            {"rope_scaling": LLAMA3 | {"high_freq_factor": 1}},
            "high_freq_factor is 1; it must be above low_freq_factor, 1",
        ),
        (
            {"rope_scaling": LLAMA3, "rope_parameters": {"rope_type": "default"}},
            "rope_parameters is {'rope_type': 'default'}; it must agree with rope_scaling, or one of them be null",
        ),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5; supported: 1"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor is 0.5; supported: 1"),
        ({"vocab_size": None}, "vocab_size is missing"),
        ({"num_hidden_layers": -1}, "num_hidden_layers is -1; it must be a positive integer"),
        ({"hidden_size": 4.5}, "hidden_size is 4.5; it must be a positive integer"),
        ({"hidden_size": 66}, "hidden_size is 66; it must be a multiple of num_attention_heads, 4"),
        ({"head_dim": 15}, "head_dim is 15; it must be even"),
        ({"num_key_value_heads": 3}, "num_key_value_heads is 3; it must divide num_attention_heads, 4"),
        ({"rms_norm_eps": "tiny"}, "rms_norm_eps is 'tiny'; it must be a number above 0"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings is 'yes'; it must be true or false"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'; supported: silu"),
        ({"eos_token_id": 1000}, "eos_token_id is 1000; it must be below vocab_size, 1000"),
        ({"eos_token_id": ["a"]}, "eos_token_id is ['a']; it must be a token id or a list"),
        ({"torch_dtype": "int8"}, "torch_dtype is 'int8'; supported: float32, bfloat16, float16"),
        ({"quantization_config": {"bits": 4}}, "quantization_config is {'bits': 4}; supported: none"),
    ],
)
def test_what_is_not_supported_is_refused_in_one_line(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    assert_refused(folder_with(tmp_path, BASE | change), message)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (LLAMA | {"sliding_window": 64}, "sliding_window is 64; supported: null, as this family has no sliding window"),
        (
            MISTRAL | {"layer_types": ["full_attention"] * 3},
            "layer_types is 'full_attention'; supported with this sliding_window: sliding_attention",
        ),
        (LLAMA | {"attention_bias": 1}, "attention_bias is 1; it must be true or false"),
        (QWEN3_MOE | {"num_experts": None}, "num_experts is missing"),
        (QWEN3_MOE | {"num_experts": 0}, "num_experts is 0; it must be a positive integer"),
        (QWEN3_MOE | {"num_local_experts": 4}, "num_local_experts is 4; it must equal num_experts, 8"),
        (
            QWEN3_MOE | {"num_experts_per_tok": 9},
            "num_experts_per_tok is 9; it must be at most the number of experts, 8",
        ),
        (QWEN3_MOE | {"moe_intermediate_size": None}, "moe_intermediate_size is missing"),
        (QWEN3_MOE | {"norm_topk_prob": "no"}, "norm_topk_prob is 'no'; it must be true or false"),
        (QWEN3_MOE | {"decoder_sparse_step": 0}, "decoder_sparse_step is 0; it must be a positive integer"),
        (QWEN3_MOE | {"mlp_only_layers": [3]}, "mlp_only_layers is [3]; it must be a list of layers from 0 to 2"),
        (QWEN3_MOE | {"mlp_only_layers": 1}, "mlp_only_layers is 1; it must be a list of layers from 0 to 2"),
        (
            QWEN3_MOE | WINDOW | {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"]},
            "layer_types is 'full_attention'; supported with this sliding_window: sliding_attention",
        ),
    ],
)
def test_what_another_family_does_not_support(tmp_path: Path, config: dict[str, Any], message: str) -> None:
    assert_refused(folder_with(tmp_path, config), message)


def assert_refused(folder: Path, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        load_model_config(folder)
    text = str(caught.value)
    assert f"{folder / 'config.json'}: " in text
    assert message in text
    assert "\n" not in text


@pytest.mark.parametrize(
    ("change", "windows"),
    [
        (WINDOW | {"max_window_layers": 3}, ()),
        (WINDOW | {"max_window_layers": 1}, (None, 16, 16)),
        (WINDOW | {"max_window_layers": 0}, (16, 16, 16)),
        (WINDOW, ()),  # max_window_layers is 28
        (WINDOW | {"sliding_window": 2048, "max_window_layers": 0}, ()),
        (WINDOW | {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}, (16, None, 16)),
        (WINDOW | {"layer_types": ["full_attention"] * 3, "max_window_layers": 0}, ()),
    ],
)
def test_windows_by_layer(tmp_path: Path, change: dict[str, Any], windows: tuple[int | None, ...]) -> None:
    config = load_model_config(folder_with(tmp_path, BASE | change))
    assert config.windows == windows
    assert [config.window(index) for index in range(3)] == list(windows or (None, None, None))


def test_what_a_family_is(tmp_path: Path) -> None:
    llama = load_model_config(folder_with(tmp_path, LLAMA | {"mlp_bias": True}))
    assert (llama.qkv_bias, llama.o_bias, llama.mlp_bias, llama.qk_norm) == (False, False, True, False)
    qwen3 = load_model_config(folder_with(tmp_path, QWEN3 | {"attention_bias": True}))
    assert (qwen3.qkv_bias, qwen3.o_bias, qwen3.mlp_bias, qwen3.qk_norm) == (True, True, False, True)
    without = {key: value for key, value in QWEN3.items() if key != "head_dim"}
    assert load_model_config(folder_with(tmp_path, without)).head_dim == 128
    assert load_model_config(folder_with(tmp_path, QWEN3_MOE)).head_dim == 16


@pytest.mark.parametrize(
    "written",
    [
        {"rope_theta": 5e5, "rope_scaling": LLAMA3},
        {"rope_parameters": LLAMA3 | {"rope_theta": 5e5}},
        {"rope_theta": 5e5, "rope_scaling": LLAMA3, "rope_parameters": LLAMA3 | {"rope_theta": 5e5}},
    ],
)
def test_llama3_rope_as_both_majors_write_it(tmp_path: Path, written: dict[str, Any]) -> None:
    config = load_model_config(folder_with(tmp_path, LLAMA | written))
    scaling = RopeScaling(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_tokens=256)
    assert (config.rope_theta, config.rope_scaling) == (5e5, scaling)


@pytest.mark.parametrize("key", ["num_experts", "num_local_experts"])
@pytest.mark.parametrize(
    ("change", "layers"),
    [({}, (0, 1, 2)), ({"mlp_only_layers": [1]}, (0, 2)), ({"decoder_sparse_step": 2}, (1,))],
)
def test_experts_as_both_majors_write_them(
    tmp_path: Path, key: str, change: dict[str, Any], layers: tuple[int, ...]
) -> None:
    written = QWEN3_MOE | {"num_experts": None} | {key: 8, "norm_topk_prob": True} | change
    config = load_model_config(folder_with(tmp_path, written))
    assert config.experts == Experts(
        num_experts=8, num_experts_per_token=2, intermediate_size=32, renormalize=True, layers=layers
    )
    assert [index for index in range(3) if config.is_sparse(index)] == list(layers)


@pytest.mark.parametrize(
    ("content", "message"),
    [("{'a': 1}", "is not JSON"), ("[1]", "holds a JSON list"), ("", "is not JSON"), (b"\xff\xfe", "not JSON")],
)
def test_a_file_that_is_not_an_object(tmp_path: Path, content: str | bytes, message: str) -> None:
    (tmp_path / "config.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UsageError, match=message):
        load_model_config(tmp_path)


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"has no config\.json"):
        load_model_config(tmp_path)
    with pytest.raises(UsageError, match="nowhere does not exist"):
        load_model_config(tmp_path / "nowhere")
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="not a folder"):
        load_model_config(tmp_path / "file")


def test_generation_defaults(tmp_path: Path) -> None:
    assert load_generation_defaults(tmp_path) == GenerationDefaults()
    write_json(tmp_path / "generation_config.json", {"temperature": 0.6, "top_p": 0.95, "top_k": 20})
    want = GenerationDefaults(temperature=0.6, top_p=0.95, top_k=20)
    assert load_generation_defaults(tmp_path) == want
    write_json(tmp_path / "generation_config.json", {"repetition_penalty": 1.1, "min_p": 0.05, "do_sample": True})
    assert load_generation_defaults(tmp_path) == GenerationDefaults(repetition_penalty=1.1, min_p=0.05)
    write_json(tmp_path / "generation_config.json", {"temperature": None, "top_k": -1, "min_p": None, "other": "x"})
    assert load_generation_defaults(tmp_path) == GenerationDefaults(top_k=-1)


def test_a_model_that_does_not_sample_is_greedy_by_default(tmp_path: Path) -> None:
    write_json(tmp_path / "generation_config.json", {"do_sample": False, "temperature": 0.7, "top_k": 20})
    assert load_generation_defaults(tmp_path) == GenerationDefaults(temperature=0.0, top_k=20)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *((key, value) for key in ("temperature", "top_p", "min_p", "repetition_penalty")
          for value in (-1, "0.5", "a\nb", [], False, math.nan, math.inf, -math.inf, 10**400)),
        ("temperature", 2.5), ("top_p", 0), ("top_p", 1.5), ("min_p", 1.5), ("repetition_penalty", 0),
        ("repetition_penalty", 11), ("top_k", 2.5), ("top_k", 0.0), ("top_k", -2), ("top_k", False), ("top_k", True),
        ("top_k", "5"), ("top_k", math.nan), ("do_sample", "no"), ("do_sample", 0),
    ],
)  # fmt: skip
def test_bad_generation_defaults(tmp_path: Path, key: str, value: Any) -> None:
    path = tmp_path / "generation_config.json"
    path.write_text(json.dumps({key: value}))
    with pytest.raises(UsageError) as caught:
        load_generation_defaults(tmp_path)
    assert str(caught.value).startswith(f"{path}: {key} is {value!r}; it must be ")
    assert "\n" not in str(caught.value)
