"""Every op compiles for every TPU generation, by the compiler itself; one process for each."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

ROOT = Path(__file__).parents[2]
TARGETS = ("v5e", "v6e", "tpu7x")
TIMEOUT_S = 240

PLANTED = """
import sys
from kernels import aot
target = aot.parse_target("v6e")
aot.set_environment(target)

import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from kernels.compile.cases import Case, struct
from kernels.compile.command import check
from kernels.console import make_console

def copy_first_rows(x, o_ref, scratch):
    pltpu.sync_copy(x.at[0], scratch.at[0, :8])
    o_ref[...] = scratch[0, :8]

def program(lanes, scratch_mib):
    def run(x):
        return pl.pallas_call(
            copy_first_rows,
            in_specs=[pl.BlockSpec(memory_space=pl.ANY)],
            out_shape=struct(8, lanes, dtype="float32"),
            scratch_shapes=[pltpu.VMEM((scratch_mib, 2048, lanes), jnp.float32)],
            compiler_params=pltpu.CompilerParams(vmem_limit_bytes=100 << 20),
        )(x)
    return run

wide, narrow = struct(1 << 17, 8, 128, dtype="float32"), struct(1 << 17, 8, 64, dtype="float32")
cases = [
    Case("planted", "fits", "", program(128, 1), (wide,), (), 4096, "a page"),
    Case("planted", "takes too much VMEM", "", program(128, 1000), (wide,), (), 4096, "a page"),
    Case("planted", "pads its argument in a copy", "", program(64, 1), (narrow,), (), 4096, "a page"),
]
sys.exit(check(cases, target, make_console(), None))
"""


def start(*args: str) -> subprocess.Popen[str]:
    # A JAX_PLATFORMS or XLA_FLAGS of the tests' own would not disturb it, but a dump of schedules would.
    environment = {name: value for name, value in os.environ.items() if name != "LIBTPU_INIT_ARGS"}
    command = [sys.executable, *args]
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """The written outcomes by target; the targets are compiled for at the same time."""
    folder = tmp_path_factory.mktemp("compile")
    files = {target: folder / f"{target}.json" for target in TARGETS}
    processes = {
        target: start("-m", "kernels.compile", "--target", target, "--subset", "--json", str(file))
        for target, file in files.items()
    }
    for process in processes.values():
        printed, _ = process.communicate(timeout=TIMEOUT_S)
        assert process.returncode == 0, printed
    return {target: msgspec.json.decode(file.read_bytes()) for target, file in files.items()}


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
def test_a_sample_of_every_op_compiles_without_hidden_copies(outcomes: dict[str, dict[str, Any]], target: str) -> None:
    cases = outcomes[target]["cases"]
    assert {case["op"] for case in cases} == {
        "paged_decode",
        "chunked_prefill",
        "kv_write",
        "gather_pages",
        "scatter_pages",
    }
    for case in cases:
        assert case["reason"] == ""
        assert case["code_bytes"] > 0
        assert case["temp_bytes"] < case["max_temp_bytes"]


def test_programs_that_do_not_fit_are_reported_with_the_compilers_reason() -> None:
    process = start("-c", PLANTED)
    printed, _ = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 1, printed
    assert "3 programs" in printed
    assert "2 failed" in printed
    assert "FAILED planted takes too much VMEM\n" in printed
    assert "vmem" in printed.lower()
    assert "FAILED planted pads its argument in a copy\n" in printed
    assert "less than a page, 4096 bytes" in printed
    assert "FAILED planted fits" not in printed


def test_the_command_line_refuses_what_it_does_not_know() -> None:
    for args, told in ((["--target", "v9"], "allowed"), (["--match", "no such case"], "no case matches")):
        process = start("-m", "kernels.compile", *args)
        printed, _ = process.communicate(timeout=TIMEOUT_S)
        assert process.returncode == 2
        assert told in printed
