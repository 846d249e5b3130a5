"""The kernels' report: its arithmetic on planted schedules, and one run with the compiler."""

import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from kernels.chunked_prefill.tuning import PrefillConfig
from kernels.report.chip import Chip
from kernels.report.document import Report, read_json, write_json
from kernels.report.figures import (
    DecodeFigures,
    DecodeProgram,
    PrefillProgram,
    PrefillWork,
    decode_figures,
    prefill_figures,
)
from kernels.report.moves import MoveProgram, move_figures
from kernels.report.programs import prefill_work
from kernels.report.sheets import Sheet, to_lines, to_markdown
from kernels.report.summary import heading, sheets
from kernels.schedule import Content, Loop, Schedule

ROOT = Path(__file__).parents[2]
CHIP = Chip(target="v6e:1x1", clock_hz=1e9, hbm_bytes_per_s=1e12, peak_flop_per_s=9e14, vmem_bytes=1 << 27)


def loop(first: int, end: int, depth: int, *, own: int, vmatmuls: int = 0, skippable: int = 0, dmas: int = 0) -> Loop:
    return Loop(
        first=first,
        end=end,
        depth=depth,
        whole=Content(bundles=end - first, vmatmuls=vmatmuls, dma_starts=dmas, slot_cycles={"MATMUL": 40}),
        own=Content(bundles=own, vmatmuls=vmatmuls, dma_starts=dmas, dma_bytes=32 * dmas),
        skippable=skippable,
    )


def schedule(*loops: Loop) -> Schedule:
    return Schedule(whole=Content(bundles=2000), loops=loops, capacity={"MATMUL": 2})


def decode_report(kernel: str, blocks: int) -> DecodeFigures:
    """Steps of 8 rows; a block takes `blocks` bundles, 10 of them in a rare loop."""
    program = DecodeProgram(
        kernel=kernel, heads="12/2", page_size=128, config="4p", block_pages=4, page_bytes=1 << 17, rows_per_trip=8
    )
    planted = schedule(
        loop(0, 300 + blocks, 1, own=80),
        loop(50, 270 + blocks, 2, own=200),
        loop(60, 80, 3, own=20),
        loop(100, 100 + blocks, 3, own=blocks - 10, vmatmuls=16, skippable=30),
        loop(110, 120, 4, own=10),
    )
    return decode_figures(planted, program, CHIP, (512, 1100))


def test_decode_counts_all_branches_of_the_trips_and_shares_the_outer_loop() -> None:
    figures = decode_report("paged_decode", 400)
    assert figures.block.bundles == 400
    assert figures.block.least_bundles == 400 - 10 - 30
    assert figures.block.bundles_per_page == 100
    assert figures.block.occupancy == {"MATMUL": 40 / 800}
    # 80 bundles of the outer loop are for 8 rows; the row's own 200 and the rare loop beside the blocks for one.
    assert figures.sequence_bundles == 80 / 8 + 220
    short, long = figures.rows
    assert short.bundles == 230 + 400
    assert long.bundles == 230 + 3 * 400  # 1,100 tokens are 3 blocks of 512
    assert long.issue_s == pytest.approx(1430e-9)
    assert long.memory_s == pytest.approx(1100 * 1024 / 1e12)
    assert long.ratio == pytest.approx(1430e-9 / (1100 * 1024 / 1e12))


def prefill_program(masks_apart: bool) -> PrefillProgram:
    return PrefillProgram(
        kernel="chunked_prefill",
        heads="12/2",
        page_size=128,
        config="",
        block_pages=4,
        block_bytes=1 << 19,
        scores=1536 * 512,
        head_dim=128,
        masks_apart=masks_apart,
        work=lambda context: PrefillWork(8, 10, 5, 20),
    )


def test_prefill_tells_masked_blocks_from_unmasked_ones() -> None:
    unmasked = loop(500, 1500, 2, own=1000, vmatmuls=768)
    steps = loop(150, 400, 3, own=250, vmatmuls=384)
    outer, masked = loop(0, 1800, 1, own=500), loop(100, 400, 2, own=50)
    figures = prefill_figures(schedule(outer, masked, steps, unmasked), prefill_program(True), CHIP, (2048,))
    assert figures.unmasked.bundles == 1000
    assert figures.masked is not None
    assert (figures.masked.bundles, figures.masked_step_bundles) == (300, 250)
    assert figures.outside_bundles == 500
    assert figures.bundles_per_score_tile == 1000 / (1536 * 512 / 1024)
    assert figures.flop_per_s == pytest.approx(4 * 1536 * 512 * 128 / 1e-6)
    (row,) = figures.rows
    assert row.bundles == 8 * 500 + 10 * 1000 + 5 * 50 + 20 * 250
    assert row.masked_share == pytest.approx((5 * 50 + 20 * 250) / row.bundles)
    assert row.memory_s == pytest.approx(15 * (1 << 19) / 1e12)


def test_loops_that_lay_out_queries_and_results_count_all_their_trips() -> None:
    stores = Content(bundles=100, slot_cycles={"VSTORE": 60})
    lay_out = msgspec.structs.replace(loop(20, 120, 2, own=100), own=stores, whole=stores)
    clear = msgspec.structs.replace(loop(5, 15, 2, own=10), own=Content(bundles=10, slot_cycles={"VSTORE": 2}))
    outer, masked, unmasked = (
        loop(0, 900, 1, own=100),
        loop(150, 400, 2, own=250, vmatmuls=8),
        loop(400, 800, 2, own=400, vmatmuls=9),
    )
    planted = schedule(outer, clear, lay_out, masked, unmasked)
    once = prefill_figures(planted, prefill_program(True), CHIP, (2048,))
    thrice = prefill_figures(planted, prefill_program(True)._replace(pieces=3), CHIP, (2048,))
    assert once.outside_bundles == 900 - 250 - 400
    assert thrice.outside_bundles == once.outside_bundles + 2 * 100


def test_a_masked_loop_need_not_have_steps_and_need_not_be_there() -> None:
    outer, first, second = (
        loop(0, 900, 1, own=100),
        loop(50, 450, 2, own=400, vmatmuls=8),
        loop(450, 850, 2, own=400, vmatmuls=9),
    )
    both = prefill_figures(schedule(outer, first, second), prefill_program(True), CHIP, (2048,))
    assert both.masked is not None
    assert (both.masked.bundles, both.masked_step_bundles) == (400, 0)
    assert both.rows[0].bundles == 8 * 100 + 10 * 400 + 5 * 400

    alone = prefill_figures(schedule(outer, first), prefill_program(False), CHIP, (2048,))
    assert alone.masked is None
    assert alone.rows[0].masked_share == 0

    with pytest.raises(ValueError, match="2 loops multiply matrices, expected 1"):
        prefill_figures(schedule(outer, first, second), prefill_program(False), CHIP, (2048,))


def test_prefills_trips_are_those_of_causal_attention() -> None:
    config = PrefillConfig(query_tokens=256, key_tokens=512, kv_heads=2)
    whole = prefill_work(config, 1, 2048)
    # Query block i sees 256 i + 256 keys; the first 512 * (i // 2) of them need no mask.
    assert whole.query_blocks == 8
    assert whole.unmasked == sum(i // 2 for i in range(8))
    assert whole.masked == 8
    assert whole.masked_steps == 4 * (1 + 2)
    late = prefill_work(config, 4, 8192)
    assert late.unmasked == 4 * (8 * 12 + whole.unmasked)
    assert late.masked == 4 * 8


def test_moves_are_counted_per_piece() -> None:
    planted = schedule(
        loop(0, 40, 1, own=40, dmas=1),
        loop(50, 150, 1, own=100, dmas=28),
        loop(200, 300, 1, own=60),
        loop(210, 250, 2, own=40, dmas=2),
    )
    program = MoveProgram("gather_pages", "28 layers", "page", 16, 2, 1 << 20, "outermost")
    figures = move_figures(planted, program, CHIP)
    assert (figures.bundles, figures.dma_starts) == (50, 14)
    assert figures.issue_s == pytest.approx(50e-9)
    assert figures.memory_s == pytest.approx((1 << 20) / 1e12)
    nested = move_figures(planted, program._replace(loop="only child"), CHIP)
    assert (nested.bundles, nested.dma_starts) == (20, 1)
    with pytest.raises(ValueError, match="no loop starts DMAs"):
        move_figures(schedule(loop(0, 40, 1, own=40)), program, CHIP)
    with pytest.raises(ValueError, match="no only child loop starts DMAs"):
        move_figures(schedule(loop(0, 40, 1, own=40, dmas=1)), program._replace(loop="only child"), CHIP)


def test_moves_in_batches_count_the_unrolled_loops_of_a_batch() -> None:
    planted = schedule(
        loop(0, 40, 1, own=40, dmas=4),
        loop(50, 300, 1, own=128),
        loop(60, 100, 2, own=40, dmas=4),
        loop(110, 122, 2, own=12, dmas=1),
        loop(130, 200, 2, own=70, dmas=4),
    )
    program = MoveProgram("kv_write", "", "token", 256, 64, 2048, "batches", unrolled=4)
    figures = move_figures(planted, program, CHIP)
    assert (figures.bundles, figures.dma_starts) == (128 / 64 + 40 / 4 + 70 / 4, 2)
    with pytest.raises(ValueError, match="take 8 pieces"):
        move_figures(planted, program._replace(unrolled=8), CHIP)


def planted_report() -> Report:
    worse = msgspec.structs.replace(decode_report("jax", 900), config="1q x 4p")
    better = msgspec.structs.replace(decode_report("jax", 500), config="8q x 4p")
    return Report(jax="1", libtpu="2", chip=CHIP, decode=(decode_report("paged_decode", 400), worse, better))


def test_tables_show_the_project_before_the_best_of_jax() -> None:
    report = planted_report()
    decode = sheets(report)[0]
    assert [row[2:4] for row in decode.rows] == [("own", "4p"), ("jax", "8q x 4p")]
    assert "Estimates of the TPU compiler" in heading(report)


def test_a_sheet_as_aligned_text() -> None:
    lines = to_lines(Sheet("Title", "Note.", ("name", "long\nn"), [("abcdef", "1"), ("b", "12345")], 1))
    assert lines == ["         long", "name        n", "─" * 13, "abcdef      1", "b       12345"]


def test_a_sheet_as_markdown() -> None:
    text = to_markdown([Sheet("Title", "Note.", ("name", "the\nn"), [("a", "1")], 1)])
    assert text == "### Title\n\nNote.\n\n| name | the n |\n| --- | ---: |\n| a | 1 |\n"


def test_a_report_is_read_back_only_for_the_same_compiler_and_chip(tmp_path: Path) -> None:
    report = planted_report()
    path = tmp_path / "report.json"
    write_json(report, path)
    assert read_json(path, msgspec.structs.replace(report, decode=())) == report
    with pytest.raises(ValueError, match="is of libtpu 2, this run of 3"):
        read_json(path, msgspec.structs.replace(report, libtpu="3"))
    path.write_text("{}")
    with pytest.raises(ValueError, match="is not a report"):
        read_json(path, report)


def run_report(*args: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "LIBTPU_INIT_ARGS"}
    command = [sys.executable, "-m", "kernels.report", *args]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240)


@pytest.mark.slow
def test_the_decode_kernel_is_reported_for_v6e(tmp_path: Path) -> None:
    written, tables = tmp_path / "report.json", tmp_path / "report.md"
    finished = run_report(
        *("--target", "v6e", "--op", "paged_decode", "--heads", "12/2", "--without-comparison"),
        *("--json", str(written), "--markdown", str(tables)),
    )
    assert finished.returncode == 0, finished.stderr
    assert "Nothing here was measured on a TPU" in finished.stdout
    report = msgspec.json.decode(written.read_bytes(), type=Report)
    assert [figures.page_size for figures in report.decode] == [16, 64, 128]
    for figures in report.decode:
        # The block's pages, by one DMA each, and a row of the page table at most beside them.
        pages = figures.block.pages
        assert figures.block.dma_bytes == pages * 2 * 2 * figures.page_size * 128 * 2
        assert pages <= figures.block.dma_starts <= pages + 1
        assert figures.block.vmatmuls > 0
        assert 0 < figures.block.least_bundles <= figures.block.bundles
        assert figures.rows[0].context_tokens == 1024
    assert "### Decode: issue time over memory time" in tables.read_text()


def test_the_command_line_refuses_heads_it_does_not_report() -> None:
    finished = run_report("--heads", "7/7")
    assert finished.returncode == 2
    assert "--heads 7/7: allowed: 12/2, 32/8, 16/2" in finished.stderr
