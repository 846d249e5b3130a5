"""What a compiled program lasts by the compiler's estimates: reading its text, loops, branches, copies and kernels."""

import msgspec
import pytest

from runtime.compile.hlo import parse_module
from runtime.compile.walk import KernelTime, Rates, walk

RATES = Rates(clock_hz=1e6, hbm_bytes_per_s=1e6, peak_flop_per_s=1e6)
"""A cycle and a byte of HBM take a microsecond each, so the numbers below are microseconds."""

PROGRAM = """\
HloModule jit_step, is_scheduled=true

%body (arg: (s32[], f32[8])) -> (s32[], f32[8]) {
  %arg = (s32[]{:T(128)}, f32[8]{0:T(128)S(1)}) parameter(0)
  %item = f32[8]{0:T(128)S(1)} get-tuple-element(%arg), index=1
  %add.1 = f32[8]{0:T(128)S(1)} fusion(%item), kind=kLoop, calls=%inner, backend_config={"estimated_cycles":"10"}
  ROOT %tuple.1 = (s32[]{:T(128)}, f32[8]{0:T(128)S(1)}) tuple(%item, %add.1)
}

%condition (arg.1: (s32[], f32[8])) -> pred[] {
  %limit = s32[]{:T(128)} constant(7)
  %arg.1 = (s32[]{:T(128)}, f32[8]{0:T(128)S(1)}) parameter(0)
  %index = s32[]{:T(128)} get-tuple-element(%arg.1), index=0
  ROOT %lt = pred[]{:T(512)} compare(%index, %limit), direction=LT
}

%inner (in: f32[8]) -> f32[8] {
  %in = f32[8]{0:T(128)S(1)} parameter(0)
  ROOT %out = f32[8]{0:T(128)S(1)} add(%in, %in), backend_config={"estimated_cycles":"999"}
}

%plain (p: f32[8]) -> f32[8] {
  ROOT %p = f32[8]{0:T(128)S(1)} parameter(0)
}

%costly (q: f32[8]) -> f32[8] {
  %q = f32[8]{0:T(128)S(1)} parameter(0)
  ROOT %copy.9 = f32[8]{0:T(128)S(1)} copy(%q), backend_config={"estimated_cycles":"500"}
}

%sliced (w: s8[1000]) -> s8[100] {
  %w = s8[1000]{0:T(1024)} parameter(0)
  ROOT %slice = s8[100]{0:T(1024)S(1)} slice(%w), slice={[0:100]}
}

ENTRY %main (w.1: s8[1000], x.1: f32[8]) -> f32[8] {
  %w.1 = s8[1000]{0:T(1024)(128)(4,1)} parameter(0)
  %x.1 = f32[8]{0:T(128)} parameter(1)
BODY
}
"""


def lasts(*lines: str, **kernels: KernelTime) -> tuple[int, int, int]:
    """Step, core and HBM in microseconds of an entry computation with these lines."""
    walked = walk(parse_module(PROGRAM.replace("BODY", "\n".join(f"  {line}" for line in lines))), RATES, kernels)
    return round(walked.step_s * 1e6), round(walked.core_s * 1e6), round(walked.hbm_s * 1e6)


def fusion(name: str, cycles: int, operand: str = "y", space: str = "S(1)") -> str:
    return (
        f"%{name} = f32[8]{{0:T(128){space}}} fusion(%{operand}), kind=kLoop, calls=%inner, "
        f'backend_config={{"window_config":{{"estimated_cycles":"{cycles}"}}}}'
    )


START = (
    "%start = ((s8[1000]{0:T(1024)}), s8[100]{0:T(1024)S(1)}, s32[]{:S(2)}) async-start(%w.1), calls=%sliced, "
    'backend_config={"dma_priority":1}'
)
DONE = "%done = s8[100]{0:T(1024)S(1)} async-done(%start)"


def test_instructions_count_and_what_they_call_is_in_their_estimate() -> None:
    assert lasts(fusion("a", 30), fusion("b", 12, "a")) == (42, 42, 0)


def test_an_estimate_that_stands_for_unknown_is_none() -> None:
    assert lasts(fusion("a", (1 << 63) - 1)) == (0, 0, 0)


def test_what_lies_in_hbm_is_moved_but_takes_no_longer_than_estimated() -> None:
    assert lasts(fusion("a", 100, "x.1", "")) == (100, 100, 64)
    assert lasts(fusion("a", 100, "w.1")) == (100, 100, 100)


def test_a_copy_runs_beside_the_core_and_a_wait_takes_what_is_left_of_it() -> None:
    assert lasts(START, fusion("a", 30), DONE) == (100, 30, 100)
    assert lasts(START, fusion("a", 300), DONE) == (300, 300, 100)
    # The core's own accesses come first: the copy gets no time of HBM while a fusion reads all of its 100.
    assert lasts(START, fusion("a", 100, "w.1"), DONE) == (200, 100, 200)


def test_a_copy_that_nobody_waits_for_still_has_to_end() -> None:
    assert lasts(START, fusion("a", 30)) == (100, 30, 100)


def test_a_copy_between_two_places_in_hbm_reads_and_writes() -> None:
    copy = "%c = (f32[8]{0:T(128)}, f32[8]{0:T(128)}, u32[]{:S(2)}) copy-start(%x.1)"
    into_vmem = copy.replace("(f32[8]{0:T(128)}", "(f32[8]{0:T(128)S(1)}", 1)
    done = "%d = f32[8]{0:T(128)} copy-done(%c)"
    assert (lasts(copy, done), lasts(into_vmem, done)) == ((64, 0, 64), (32, 0, 32))


def test_a_loop_counts_with_its_trips() -> None:
    loop = "%loop = (s32[]{:T(128)}, f32[8]{0:T(128)S(1)}) while(%t), condition=%condition, body=%body"
    module = parse_module(PROGRAM.replace("BODY", f"  {loop}"))
    assert module.trips(module.computations["main"][-1]) == 7
    assert lasts(loop)[0] == 70
    unknown = walk(
        parse_module(PROGRAM.replace("BODY", f"  {loop}").replace("direction=LT", "direction=NE")), RATES, {}
    )
    assert (round(unknown.core_s * 1e6), unknown.unestimated > 0) == (10, True)


@pytest.mark.parametrize(
    ("branches", "lasts_us"),
    [
        ("branch_computations={%plain, %costly}", (5, 5, 0)),
        ("true_computation=%costly, false_computation=%plain", (5, 5, 0)),
        ("branch_computations={%costly, %plain}", (505, 505, 0)),
    ],
)
def test_of_a_conditional_the_branch_of_a_false_predicate_counts(branches: str, lasts_us: tuple[int, int, int]) -> None:
    line = f"%c = f32[8]{{0:T(128)S(1)}} conditional(%i, %a, %b), {branches}"
    assert lasts(fusion("a", 5), line) == lasts_us


def test_a_kernel_takes_what_is_said_of_it() -> None:
    line = (
        '%k.4 = f32[8]{0:T(128)} custom-call(%x.1), custom_call_target="tpu_custom_call", '
        'metadata={op_name="jit(step)/attention/paged_decode/pallas_call" stack_frame_id=1}'
    )
    assert lasts(line, line, paged_decode=KernelTime(3e-6, 20e-6)) == (40, 6, 40)
    assert lasts(line, paged_decode=KernelTime(30e-6, 20e-6)) == (30, 30, 20)
    with pytest.raises(ValueError, match="no time is known of the kernels \\['paged_decode'\\]"):
        lasts(line)


def test_without_an_estimate_the_bytes_of_the_result_are_moved_and_it_is_counted() -> None:
    module = parse_module(PROGRAM.replace("BODY", "  %s = f32[8]{0:T(128)} sort(%x.1), dimensions={0}"))
    walked = walk(module, RATES, {})
    assert (round(walked.step_s * 1e6), walked.unestimated) == (64, 1)


def test_text_that_is_no_program_is_refused() -> None:
    with pytest.raises(ValueError, match="no entry computation"):
        parse_module("HloModule nothing")


def test_the_roofline_is_the_longer_of_the_two() -> None:
    assert msgspec.structs.replace(RATES, peak_flop_per_s=2e6).roofline_s(flop=6e6, num_bytes=2e6) == 3.0
    assert RATES.roofline_s(flop=1e6, num_bytes=2e6) == 2.0
