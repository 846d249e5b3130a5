"""Which kernels and shapes a report covers, and compiling them one after the other."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import msgspec
from rich.console import Console

from kernels.compile.cases import Case, Shape, decode_case, prefill_case
from kernels.console import progress
from kernels.report import comparison, programs
from kernels.report.chip import Chip
from kernels.report.compiler import ScheduleCompiler
from kernels.report.document import Refused, Report
from kernels.report.figures import (
    DecodeFigures,
    DecodeProgram,
    PrefillFigures,
    PrefillProgram,
    decode_figures,
    prefill_figures,
)
from kernels.report.moves import MoveFigures, MoveProgram, move_figures
from kernels.schedule import Schedule
from kernels.shapes import MODELS, Heads

HEADS = (
    MODELS["deepseek-r1-distill-qwen-1.5b"],
    MODELS["llama-3.1-8b"],
    MODELS["qwen3-32b"].on_one_of(4),
)
"""Heads of the attention figures: 12/2, 32/8 and 16/2."""
DECODE_PAGE_SIZES = (16, 64, 128)
PREFILL_PAGE_SIZE = 128
DECODE_CONTEXTS = (1024, 8192)
PREFILL_CONTEXTS = (2048, 8192)


class Plan(NamedTuple):
    """What to report: ops, heads as `N/K` (None is all), whether jax's kernel comes in, and earlier
    reports that have its figures.
    """

    ops: Sequence[str]
    heads: Sequence[str] | None
    compare: bool
    earlier: Sequence[Report]


class Task(NamedTuple):
    """One kernel to compile, and the field of the report that its figures go to."""

    field: str
    kernel: str
    """Name of the kernel in the schedule's dumps."""
    shape: str
    owner: str
    """The op, or `jax`."""
    case: Case
    figures: Callable[[Schedule], Any]


def make_report(
    plan: Plan, start: Report, compiler: ScheduleCompiler, console: Console, save: Callable[[Report], None]
) -> Report:
    """Compiles everything in the plan; `start` has the chip and no figures. `save` gets the report so far each time."""
    found: dict[str, list[Any]] = {"decode": [], "prefill": [], "moves": [], "refused": []}
    for earlier in plan.earlier:
        for name in ("decode", "prefill"):
            old = getattr(earlier, name)
            found[name] += [
                figures for figures in old if figures.kernel == comparison.NAME and _wanted(plan, name, figures.heads)
            ]
    tasks = list(make_tasks(plan, start.chip))
    with progress(console, len(tasks)) as step:
        for number, task in enumerate(tasks, start=1):
            step(f"{task.owner} {task.shape}")
            if not console.is_terminal:
                console.print(f"[{number}/{len(tasks)}] {task.owner} {task.shape}")
            try:
                schedule = compiler.schedule(task.kernel, task.case)
                found[task.field].append(task.figures(schedule))
            except Exception as error:  # the compiler's errors have no common type, and every one is an answer here
                reason = f"{type(error).__name__}: {error}"
                found["refused"].append(Refused(kernel=task.owner, shape=task.shape, reason=reason))
            save(_with_figures(start, found))
    return _with_figures(start, found)


def _with_figures(start: Report, found: dict[str, list[Any]]) -> Report:
    return msgspec.structs.replace(start, **{name: tuple(figures) for name, figures in found.items()})


_OP_OF = {"decode": "paged_decode", "prefill": "chunked_prefill"}


def _wanted(plan: Plan, field: str, heads: str) -> bool:
    return _OP_OF[field] in plan.ops and (plan.heads is None or heads in plan.heads)


def make_tasks(plan: Plan, chip: Chip) -> Iterator[Task]:
    """The kernels to compile, each of the project's before jax's at the same shape."""
    known = {f"{heads.num_heads}/{heads.num_kv_heads}": heads for heads in HEADS}
    if unknown := [text for text in plan.heads or () if text not in known]:
        raise ValueError(f"--heads {unknown[0]}: allowed: {', '.join(known)}")
    for text, heads in known.items():
        if _wanted(plan, "decode", text):
            for page_size in DECODE_PAGE_SIZES:
                yield from _decode_tasks(plan, heads, page_size, chip)
    for text, heads in known.items():
        if _wanted(plan, "prefill", text):
            yield from _prefill_tasks(plan, heads, PREFILL_PAGE_SIZE, chip)
    if "moves" in plan.ops:
        yield from _move_tasks(chip)


def _decode_tasks(plan: Plan, heads: Heads, page_size: int, chip: Chip) -> Iterator[Task]:
    shape = Shape("", heads, page_size)
    program = programs.decode_program(shape)
    yield _decode_task(program, program.kernel, decode_case(shape), chip)
    if plan.compare and not plan.earlier:
        for blocks in comparison.decode_sweep():
            case = comparison.decode_case(heads, page_size, blocks, chip.vmem_bytes)
            yield _decode_task(comparison.decode_program(heads, page_size, blocks), comparison.KERNEL, case, chip)


def _prefill_tasks(plan: Plan, heads: Heads, page_size: int, chip: Chip) -> Iterator[Task]:
    shape = Shape("", heads, page_size)
    program = programs.prefill_program(shape)
    yield _prefill_task(program, program.kernel, prefill_case(shape), chip)
    if plan.compare and not plan.earlier:
        for blocks in comparison.prefill_sweep():
            case = comparison.prefill_case(heads, page_size, blocks, chip.vmem_bytes)
            yield _prefill_task(comparison.prefill_program(heads, page_size, blocks), comparison.KERNEL, case, chip)


def _decode_task(program: DecodeProgram, kernel: str, case: Case, chip: Chip) -> Task:
    def figures(schedule: Schedule) -> DecodeFigures:
        return decode_figures(schedule, program, chip, DECODE_CONTEXTS)

    return Task("decode", kernel, f"decode {case.shape} {program.config}", program.kernel, case, figures)


def _prefill_task(program: PrefillProgram, kernel: str, case: Case, chip: Chip) -> Task:
    def figures(schedule: Schedule) -> PrefillFigures:
        return prefill_figures(schedule, program, chip, PREFILL_CONTEXTS)

    return Task("prefill", kernel, f"prefill {case.shape} {program.config}", program.kernel, case, figures)


def _move_tasks(chip: Chip) -> Iterator[Task]:
    for program, case in programs.move_programs():
        yield _move_task(program, case, chip)


def _move_task(program: MoveProgram, case: Case, chip: Chip) -> Task:
    def figures(schedule: Schedule) -> MoveFigures:
        return move_figures(schedule, program, chip)

    return Task("moves", program.kernel, case.shape, program.kernel, case, figures)
