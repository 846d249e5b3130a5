"""`runtime compile`: the account of memory, the flags, and a small model through the real TPU compiler."""

import json
import re
from pathlib import Path
from typing import Any

import jax
import pytest

from kernels.shapes import MODELS
from runtime.compile.flags import parse_compile
from runtime.compile.memory import Need, plan_static
from runtime.errors import UsageError
from runtime.known_models import KNOWN_MODELS
from runtime.kv_cache import PoolShape
from runtime.models.parameters import abstract_params
from tests.checkpoints import write_json
from tests.runtime.command import refusal, runtime_command

PUBLISHED_SIZES = {
    "deepseek-r1-distill-qwen-1.5b": 1_777_088_000,
    "qwen3-8b": 8_190_735_360,
    "llama-3.1-8b": 8_030_261_248,
    "qwen3-32b": 32_762_123_264,
}
"""Parameters, from the models' pages on the hub."""

POOL = PoolShape(num_layers=2, num_kv_heads=2, page_size=16, head_dim=128, dtype="bfloat16")
SMALL: dict[str, Any] = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "vocab_size": 512,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 128,
    "max_position_embeddings": 4096,
    "torch_dtype": "bfloat16",
}
SIZES = "--max-running-requests 4 --chunked-prefill-size 32 --page-size 32 --num-pages 33"


def static_of(num_pages: int | None, **changed: int) -> tuple[int, int]:
    sizes = {"weights_bytes": 600, "hbm_bytes": 1000 * POOL.page_bytes, "num_devices": 1, "num_rows": 100} | changed
    static = plan_static(POOL, mem_fraction=0.5, num_pages=num_pages, max_context_tokens=16 * 100, **sizes)
    return static.num_pages, static.missing_bytes


def test_the_pool_takes_what_the_weights_leave_of_the_share() -> None:
    assert static_of(None, weights_bytes=100 * POOL.page_bytes) == (400, 0)
    assert static_of(None, weights_bytes=100 * POOL.page_bytes, num_devices=2) == (800, 0)
    assert static_of(None, weights_bytes=0, num_rows=3) == (301, 0)  # more than the rows can fill is of no use


def test_weights_beyond_the_share_are_missing_with_the_smallest_pool() -> None:
    assert static_of(None, weights_bytes=600 * POOL.page_bytes) == (2, 102 * POOL.page_bytes)
    assert static_of(450, weights_bytes=100 * POOL.page_bytes) == (450, 50 * POOL.page_bytes)


def test_everything_together_must_fit_the_device() -> None:
    static = plan_static(
        POOL,
        weights_bytes=0,
        hbm_bytes=100 * POOL.page_bytes,
        mem_fraction=0.5,
        num_devices=1,
        num_pages=50,
        num_rows=1,
        max_context_tokens=16,
    )
    room = 50 * POOL.page_bytes
    fits = Need(static=static, rows_bytes=100, code_bytes=50, temporary_bytes=room - 150)
    assert (fits.missing_bytes, fits.total_bytes) == (0, 2 * room)
    assert Need(static=static, rows_bytes=100, code_bytes=50, temporary_bytes=room).missing_bytes == 150


@pytest.mark.parametrize("name", list(KNOWN_MODELS))
def test_known_models_have_their_published_sizes_and_the_kernels_heads(name: str) -> None:
    model, heads = KNOWN_MODELS[name], MODELS[name]
    assert sum(leaf.size for leaf in jax.tree.leaves(abstract_params(model, model.dtype))) == PUBLISHED_SIZES[name]
    assert heads == (model.num_layers, model.num_heads, model.num_kv_heads, model.head_dim)


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("--target v9", "--target 'v9': allowed: a generation with its chips, as v5e:2x2"),
        ("--target v6e:2x2x2", "--target 'v6e:2x2x2'"),
        ("--target tpu7x:2", "--target 'tpu7x:2'"),
        ("--device cpu", "--device cpu: allowed: auto, tpu"),
        (
            "--attention-backend pallas-interpret",
            "--attention-backend pallas-interpret on tpu: allowed: pallas, auto, xla",
        ),
        ("--json /no/such/folder/x", "--json '/no/such/folder/x': allowed: a file in a folder that exists"),
        ("--targt v6e", "did you mean --target? allowed: the flags that `runtime compile --help` lists"),
        ("--print-config", "--print-config: allowed: with `runtime up`"),
    ],
)
def test_bad_flags_are_named(line: str, told: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_compile(line.split())
    assert told in str(caught.value)


def test_a_launch_line_is_taken_as_it_is() -> None:
    line = ["--model-path", "a/b", "--port", "3000", "--tp-size=4", "--device=tpu", "--disable-radix-cache"]
    flags = parse_compile(line)
    assert flags is not None
    assert (flags.settings.model, flags.settings.tp_size, str(flags.target)) == ("a/b", 4, "v6e:2x2")


def test_what_is_asked_for_must_exist() -> None:
    assert "needs 16 devices; allowed: at most the 4 of v6e:2x2" in refusal(
        "compile", "--topology", "prefill=8,decode=8", "--model", "qwen3-8b"
    )
    assert "or the name of a well-known shape: deepseek-r1-distill-qwen-1.5b, " in refusal("compile", "--model", "nope")


def test_without_the_compiler_it_says_what_to_install(tmp_path: Path) -> None:
    hide = "import sys; sys.modules['libtpu'] = None\nimport importlib.util as u; find = u.find_spec\n"
    hide += "u.find_spec = lambda name, *a: None if name == 'libtpu' else find(name, *a)\n"
    (tmp_path / "sitecustomize.py").write_text(hide)
    line = refusal("compile", "--model", "qwen3-8b", PYTHONPATH=f"{tmp_path}:{Path.cwd()}")
    assert "libtpu, the TPU compiler, is not installed; install it with `pip install 'runtime[tpu]'`" in line


def test_a_model_that_does_not_fit_is_told_by_how_much() -> None:
    done = runtime_command("compile", "--model", "qwen3-32b", "--topology", "prefill=1x2,decode=1x2")
    assert done.returncode == 1, done.stderr
    assert "DOES NOT FIT: weights and the smallest KV pool take 3.1 GiB more than 0.88 of 31.2 GiB" in done.stdout
    assert "Not servable on v6e:2x2: prefill.0: 3.1 GiB too little memory; decode.0" in done.stdout


@pytest.mark.parametrize(
    ("target", "topology"),
    [("v6e:2x2", "prefill=1x2,decode=2x1"), ("tpu7x:1x1x1", "prefill=1x1,decode=1x1")],
)
def test_a_small_model_compiles_and_fits(tmp_path: Path, target: str, topology: str) -> None:
    write_json(tmp_path / "config.json", SMALL)
    out = tmp_path / "out.json"
    arguments = f"--target {target} --topology {topology} --model {tmp_path} {SIZES} --json {out}"
    done = runtime_command("compile", *arguments.split())
    assert done.returncode == 0, (done.stdout, done.stderr)
    assert "programs compile and every slice fits" in done.stdout
    outcome = json.loads(out.read_text())
    assert (outcome["is_good"], outcome["target"], outcome["topology"]) == (True, target, topology)
    for part in outcome["slices"]:
        kinds = {program["name"].split()[0] for program in part["programs"]}
        assert {"init", "set_rows", "gather"} <= kinds
        # One device's arguments of a step: its weights and its pool, and little else. Prefill leaves the head alone.
        step = next(p for p in part["programs"] if p["name"].startswith(part["role"]))
        static = part["static"]
        head_bytes = SMALL["vocab_size"] * SMALL["hidden_size"] * 2 // part["tp"] if "prefill" in step["name"] else 0
        rest = step["argument_bytes"] - static["weights_bytes"] - static["pool_bytes"] + head_bytes
        assert 0 < rest < 1 << 20
        # The donated pool comes back in place.
        assert step["alias_bytes"] > static["pool_bytes"]
        assert part["need"]["total_bytes"] < static["hbm_bytes"]


def test_a_program_that_the_compiler_refuses_is_told_with_its_reason_and_the_others_are_there(tmp_path: Path) -> None:
    """Weights and pool fit the share, but a prefill step's activations do not fit what is left."""
    write_json(tmp_path / "config.json", SMALL | {"hidden_size": 8, "intermediate_size": 1 << 26})
    arguments = f"--target v5e:1x1 --topology mixed=1 --model {tmp_path} {SIZES} --mem-fraction-static 0.98"
    done = runtime_command("compile", *arguments.split())
    assert done.returncode == 1, (done.stdout, done.stderr)
    assert "  prefill 256 does not compile: RESOURCE_EXHAUSTED" in done.stdout
    assert re.search(r"^  decode 8 +[0-9.]+ s ", done.stdout, re.MULTILINE)
    assert "Not servable on v5e:1x1: mixed.0: " in done.stdout
