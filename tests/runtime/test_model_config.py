import json
import math
from pathlib import Path
from typing import Any

import pytest

from runtime.errors import UsageError
from runtime.model_config import GenerationDefaults, load_generation_defaults, load_model_config
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
        ({"rope_parameters": 3}, "rope_parameters is 3; it must be an object or null"),
        (
            {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 2},
            "use_sliding_window is True; supported: false",
        ),
        (
            {"use_sliding_window": True, "sliding_window": 16, "layer_types": ["sliding_attention"] * 3},
            "layer_types is 'sliding_attention'; supported: full_attention",
        ),
        ({"layer_types": ["linear_attention"]}, "layer_types is 'linear_attention'"),
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
    with pytest.raises(UsageError) as caught:
        load_model_config(folder_with(tmp_path, BASE | change))
    text = str(caught.value)
    assert f"{tmp_path / 'config.json'}: " in text
    assert message in text
    assert "\n" not in text


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
