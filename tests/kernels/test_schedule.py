"""The reader of schedules, on one that libtpu 0.0.52 wrote for v6e and on planted ones.

The recorded kernel has a loop that starts a DMA in every second trip and holds a loop of one product [16, 128] x
[128, 128], with a guard around it.
"""

import os
from pathlib import Path

import pytest

from kernels.schedule import Content, Schedule, parse_schedule, read_schedule

RECORDED = Path(__file__).parent / "schedules"
SLOTS_HEAD = "== CAPACITY:\nMATMUL, VLOAD:FILL, VSTORE:SPILL\n2 3 2\n== UTILIZATION:\n"


def recorded() -> Schedule:
    texts = ((RECORDED / f"two_loops-{name}.txt").read_text() for name in ("final_bundles", "slots"))
    return parse_schedule(*texts)


def planted(*bundles: str, slots: list[str] | None = None) -> Schedule:
    """`MARK text` or `text` for each bundle."""
    lines = []
    for address, bundle in enumerate(bundles):
        mark, _, text = bundle.rpartition("|")
        lines.append(f"{address:#6x} {mark:2} : > {{ {text} }}")
    return parse_schedule("\n".join(lines), SLOTS_HEAD + "\n".join(slots or ["0 0 0"] * len(bundles)))


def test_loops_of_a_recorded_schedule_and_their_nesting() -> None:
    schedule = recorded()
    outer, inner = schedule.loops
    assert schedule.whole.bundles == 76
    assert (outer.first, outer.end, outer.depth) == (0x12, 0x41, 1)
    assert (inner.first, inner.end, inner.depth) == (0x1F, 0x3A, 2)
    assert outer.contains(inner)
    assert not inner.contains(outer)
    assert not inner.contains(inner)
    assert schedule.children(None) == [outer]
    assert schedule.children(outer) == [inner]
    assert schedule.children(inner) == []


def test_bundles_of_a_loop_with_and_without_what_is_nested_or_skipped() -> None:
    outer, inner = recorded().loops
    assert (outer.whole.bundles, outer.own.bundles) == (47, 20)
    assert (inner.whole.bundles, inner.own.bundles) == (27, 27)
    # The guard jumps from 0x19 to 0x3a; four delay slots come first, and the inner loop is not the outer's own.
    assert outer.skippable == 1
    assert inner.skippable == 0


def test_dmas_and_their_bytes() -> None:
    schedule = recorded()
    outer, inner = schedule.loops
    assert (outer.own.dma_starts, outer.own.dma_bytes) == (1, 16 * 128 * 2)
    assert (inner.whole.dma_starts, inner.whole.dma_bytes) == (0, 0)
    scalars, weights, block, result = 2 * 4, 64 * 128 * 128 * 2, 16 * 128 * 2, 16 * 128 * 4
    assert schedule.whole.dma_starts == 4
    assert schedule.whole.dma_bytes == max(scalars, 512) + weights + block + result


def test_dmas_of_unknown_size_have_no_bytes_and_waits_are_no_dmas() -> None:
    schedule = planted(
        "%1 = dma.hbm_to_vmem [thread:$0] /*hbm=*/%s1, /*size_in_granules=*/%s2, /*vmem=*/%s3",
        "%2 = dma.done.wait [#allocation1], 32",
        "%3 = dma.general /*src=*/%s1, /*size_in_granules=*/4, /*dst=*/%s2 /* hbm-to-hbm */",
        "%4 = dma.vmem_to_smem /*vmem=*/%s1, /*size_in_granules=*/8, /*smem=*/%s2",
        "%5 = dma.vmem_to_hbm (%p0), /*vmem=*/%s1, /*size_in_granules=*/2 ;; %6 = dma.hbm_to_smem /*hbm=*/%s1, "
        "/*size_in_granules=*/1",
    )
    assert schedule.whole.dma_starts == 5
    assert schedule.whole.dma_bytes == (4 + 2 + 1) * 32


def test_slots_spills_and_occupancy() -> None:
    outer, inner = recorded().loops
    assert inner.whole.vmatmuls == 1
    assert inner.whole.slot_cycles["MATMUL"] == 8
    assert recorded().occupancy(inner.whole)["MATMUL"] == pytest.approx(8 / (2 * 27))
    assert inner.whole.spill_share == 0

    schedule = planted("sst [smem:[#allocation3_spill]] %s1", "x", "y", "z", slots=["2 3 1", "1 0 0", "0 0 1", "0 0 0"])
    assert (schedule.whole.spills, schedule.whole.fills, schedule.whole.scalar_spills) == (2, 3, 1)
    assert schedule.whole.spill_share == 5 / 4
    assert schedule.occupancy(schedule.whole) == {"MATMUL": 3 / 8, "VLOAD:FILL": 3 / 12, "VSTORE:SPILL": 2 / 8}


def test_a_bundle_may_span_lines() -> None:
    schedule = planted("%1 = dma.hbm_to_vmem /*hbm=*/%s1, /* \nstrides: (64, 16, 1)\n */ /*size_in_granules=*/4", "x")
    assert schedule.whole.bundles == 2
    assert schedule.whole.dma_bytes == 128


def test_a_mark_without_a_branch_back_is_no_loop() -> None:
    assert planted("LB|a } /* Start region 7 */ {", "b", "sbr.rel (%p0) target = $region8").loops == ()


def test_a_loop_at_the_end_has_no_delay_slots_beyond_it() -> None:
    (loop,) = planted("a", "LB|b } /* Start region 7 */ {", "sbr.rel (%p0) target = $region7", "c").loops
    assert (loop.first, loop.end) == (1, 4)


def test_contents_add_up() -> None:
    left = Content(bundles=1, dma_starts=2, slot_cycles={"VALU": 3})
    right = Content(bundles=4, vmatmuls=5, slot_cycles={"VALU": 1, "XLU": 2})
    assert left + right == Content(bundles=5, dma_starts=2, vmatmuls=5, slot_cycles={"VALU": 4, "XLU": 2})


def test_files_that_do_not_fit_each_other_are_refused() -> None:
    with pytest.raises(ValueError, match="2 bundles, its table of slots 1"):
        planted("a", "b", slots=["0 0 0"])


def test_the_newest_dump_of_exactly_that_kernel_is_read(tmp_path: Path) -> None:
    def write(kernel: str, bundles: int, age_s: int) -> None:
        text = "\n".join(f"{address:#6x}    :  {{ }}" for address in range(bundles))
        files = {
            f"17-{kernel}-72-final_bundles.txt": text,
            f"17-{kernel}-71-schedule-analysis_final_bundles.txt": "",
            f"17-{kernel}-70-final_hlo-static-per-bundle-utilization.txt": SLOTS_HEAD + "0 0 0\n" * bundles,
        }
        for name, content in files.items():
            (tmp_path / name).write_text(content)
            os.utime(tmp_path / name, (10**9 - age_s, 10**9 - age_s))

    write("write", 3, 20)
    write("write.1", 4, 10)
    write("write_more.1", 5, 0)
    assert read_schedule(tmp_path, "write").whole.bundles == 4
    assert read_schedule(tmp_path, "write_more").whole.bundles == 5
    with pytest.raises(FileNotFoundError, match="no -final_bundles.txt of a kernel called read"):
        read_schedule(tmp_path, "read")
