"""`runtime compile --step-times`: the grid, the kernels' share of a step, the table, and a small model for v6e."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from runtime.compile.command import check_step_times
from runtime.compile.flags import parse_compile
from runtime.compile.hlo import Instruction, Module
from runtime.compile.kernel_figures import DecodeKernel, KernelFigures, PrefillKernel
from runtime.compile.step_program import StepProgram
from runtime.compile.step_times import Slice, estimate, make_table, plan_grid
from runtime.compile.walk import KernelTime, Rates
from runtime.emulated.table import StepShape, complaints
from runtime.errors import UsageError
from runtime.known_models import KNOWN_MODELS
from runtime.programs import Key
from runtime.topology import parse_topology
from tests.checkpoints import write_json
from tests.runtime.command import environment
from tests.runtime.test_compile import SMALL

LIMIT_S = 280
"""Nine programs and five kernels; half a minute on two quiet cores."""
MODEL = KNOWN_MODELS["deepseek-r1-distill-qwen-1.5b"]
KV_BYTES = 1000
RATES = Rates(clock_hz=1e9, hbm_bytes_per_s=1e12, peak_flop_per_s=1e15)
FIGURES = KernelFigures(
    rates=RATES,
    page_size=128,
    page_bytes=128_000,
    decode=DecodeKernel(sequence_bundles=100, block_bundles=400, block_pages=8),
    prefill=PrefillKernel(
        query_tokens=256, key_tokens=512, kv_heads=2, num_parts=1, block_bytes=512_000,
        outside_bundles=4000, unmasked_bundles=3000, masked_bundles=100, step_bundles=2000,
    ),
    write_apart=KernelTime(2e-8, 1e-9),
    write_in_a_row=KernelTime(1e-10, 2e-9),
    gather=KernelTime(1e-9, 4e-6),
    scatter=KernelTime(5e-6, 4e-6),
)  # fmt: skip
GRID = plan_grid(chunk_tokens=2048, num_rows=256, page_size=128, max_context_tokens=131_072)


def program(*kernels: str, cycles: int = 1_000_000, weights_bytes: int = 0) -> StepProgram:
    """A step of one millisecond that calls these kernels once each."""
    calls = [Instruction(name=name, opcode="custom-call", kernel=name) for name in kernels]
    work = Instruction(name="all", opcode="fusion", cycles=cycles)
    module = Module(entry="main", computations={"main": (work, *calls)})
    return StepProgram(module=module, flop=1e9, weights_bytes=weights_bytes)


def programs() -> dict[Key, StepProgram]:
    buckets, embedding = GRID.buckets, MODEL.vocab_size * MODEL.hidden_size * 2
    both, rest = ("chunked_prefill", "paged_decode"), {"weights_bytes": embedding}
    found = {Key("prefill", t): program("kv_write", both[0], weights_bytes=2 * embedding) for t in buckets.prefill}
    found |= {Key("decode", b): program("kv_write", both[1], **rest) for b in buckets.decode}
    found |= {Key("mixed", t, b): program("kv_write", *both, **rest) for t, b in buckets.mixed}
    return found | {Key("sample", n): program() for n in buckets.sample}


def test_the_grid_has_the_buckets_of_every_role_and_ends_with_the_longest_sequence() -> None:
    assert GRID.buckets.prefill == (256, 512, 1024, 2048)
    assert GRID.buckets.decode == (8, 16, 32, 64, 128, 256)
    assert GRID.buckets.mixed[0] == (256, 8)
    assert GRID.buckets.mixed[-1] == (2048, 256)
    assert (GRID.starts[0], GRID.starts[-1]) == (0, 131_072 - 2048)
    assert (GRID.contexts[0], GRID.contexts[-1], GRID.mixed_context) == (128, 131_071, 1024)


def test_a_short_context_leaves_a_grid_of_its_own() -> None:
    grid = plan_grid(chunk_tokens=64, num_rows=4, page_size=32, max_context_tokens=64)
    assert (grid.starts, grid.contexts, grid.mixed_context) == ((0,), (63,), 63)


def test_decode_attention_grows_with_blocks_and_pages() -> None:
    took = FIGURES.of_step(rows=10, context=1024)  # 1,025 tokens: 9 pages, 2 blocks
    assert took["paged_decode"].issue_s == pytest.approx(10 * (100 + 2 * 400) / 1e9)
    assert took["paged_decode"].memory_s == pytest.approx(10 * 9 * 128_000 / 1e12)
    assert took["kv_write"] == KernelTime(pytest.approx(2e-7), pytest.approx(1e-8))
    assert "chunked_prefill" not in took


def test_prefill_attention_counts_masked_steps_and_unmasked_blocks() -> None:
    first, later = (FIGURES.of_step(tokens=512, start=start)["chunked_prefill"] for start in (0, 1024))
    # Two blocks of queries see one masked block of keys each, in one step of 256 keys and in two.
    assert first.issue_s == pytest.approx((2 * 4000 + 2 * 100 + 3 * 2000) / 1e9)
    assert later.issue_s - first.issue_s == pytest.approx(2 * 2 * 3000 / 1e9)
    assert later.memory_s == pytest.approx(6 * 512_000 / 1e12)


def test_the_table_is_one_that_emulated_slices_take() -> None:
    found = estimate(GRID, programs(), FIGURES, MODEL, KV_BYTES)
    about = Slice(
        model="m", how="estimated", max_context_tokens=131_072, kv_bytes_per_token=KV_BYTES, pool_tokens=4096,
        link_bytes_per_s=1e11, link_latency_s=1e-5,
    )  # fmt: skip
    table = make_table(found, FIGURES, about, MODEL)
    assert complaints(table) == []
    assert (table.source, table.platform, table.dtype) == ("estimated", "tpu", "bfloat16")
    of_8 = FIGURES.of_step(rows=8, context=1024)
    attention_s = sum(max(each.issue_s, each.memory_s) for each in of_8.values())
    assert table.step_s(StepShape(rows=8, context=1024)) == pytest.approx(1e-3 + attention_s, abs=1e-7)
    assert table.mixed.of(256, 8) > table.prefill.of(256, 0)
    assert table.transfer.of(1000) == pytest.approx(1e-5 + 1000 * KV_BYTES / 1e11)
    # The slower of issuing and moving a page, and one page more than the tokens fill.
    assert (table.gather.of(128), table.insert.of(128)) == (pytest.approx(8e-6), pytest.approx(1e-5))


def test_no_time_is_below_the_roofline() -> None:
    heavy = {key: msgspec.structs.replace(each, flop=1e13) for key, each in programs().items()}
    found = estimate(GRID, heavy, FIGURES, MODEL, KV_BYTES)
    every = [each for rows in (found.prefill, found.decode, found.mixed) for row in rows for each in row]
    assert all(each.step_s == each.roofline_s > each.walked.step_s for each in every if each.walked.step_s < 1e-2)
    assert all(each.ratio >= 1 for each in every)


def test_the_embedding_is_looked_up_and_not_read() -> None:
    found = estimate(GRID, programs(), FIGURES, MODEL, KV_BYTES)
    # Nor is the output matrix that a prefill step would score a prompt with; then attention takes the longest.
    attended = 4 * 256 * 257 // 2 * MODEL.num_heads * MODEL.head_dim * MODEL.num_layers
    assert found.prefill[0][0].roofline_s == pytest.approx(attended / 1e15)
    assert found.decode[0][0].roofline_s == pytest.approx((8 * 129 + 8) * KV_BYTES / 1e12, rel=0.5)


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("--step-times /no/such/folder/x", "--step-times '/no/such/folder/x': allowed: a file in a folder that exists"),
        ("--target tpu7x --step-times x", "no link bandwidth is known of tpu7x:1x1x1; allowed: with --link-gbytes-per"),
        ("--link-gbytes-per-s 0", "--link-gbytes-per-s '0': allowed: a number of GB/s above 0"),
    ],
)
def test_bad_flags_are_named(line: str, told: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_compile(line.split())
    assert told in str(caught.value)


def test_the_link_is_what_was_given_or_what_is_published() -> None:
    given, published = parse_compile(["--link-gbytes-per-s", "25"]), parse_compile([])
    assert given is not None
    assert published is not None
    assert (given.link_bytes_per_s, published.link_bytes_per_s, published.link_latency_s) == (25e9, 100e9, 1e-5)


def test_what_cannot_be_estimated_is_refused_before_anything_is_compiled() -> None:
    with pytest.raises(UsageError, match="--step-times with prefill=1x2,decode=1x1: allowed: slices of one device"):
        check_step_times(MODEL, parse_topology("prefill=1x2,decode=1"))
    check_step_times(MODEL, parse_topology("prefill=2,decode=2"))


@pytest.mark.slow
def test_a_small_model_gets_a_table_of_estimates(tmp_path: Path) -> None:
    config: dict[str, Any] = SMALL | {"num_hidden_layers": 1}
    write_json(tmp_path / "config.json", config)
    sizes = "--max-running-requests 4 --chunked-prefill-size 32 --page-size 32 --num-pages 33 --context-length 2048"
    out = tmp_path / "table.json"
    arguments = f"--target v6e:1x1 --topology mixed=1 --model {tmp_path} {sizes} --step-times {out}"
    done = subprocess.run(
        [sys.executable, "-m", "runtime", "compile", *arguments.split()],
        env=environment(), capture_output=True, text=True, timeout=LIMIT_S, check=False,
    )  # fmt: skip
    assert done.returncode == 0, (done.stdout, done.stderr)
    assert "Estimated step times, nothing was run or measured" in done.stdout
    table = json.loads(out.read_text())
    assert (table["source"], table["pool_tokens"], table["max_context_tokens"]) == ("estimated", 1024, 2048)
    assert table["kv_bytes_per_token"] == 2 * 2 * 128 * 2
    # Each is dearer than the least that a step does, and far below what a layer this small could ever take.
    for part in ("prefill", "decode", "mixed"):
        assert all(1e-5 < seconds < 1e-3 for row in table[part]["step_s"] for seconds in row)
    assert table["mixed"]["step_s"][0][0] > table["decode"]["step_s"][0][0]
