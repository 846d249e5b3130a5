"""The outcome as people read it, and as a document for machines."""

from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from runtime.cli.console import Report, human_bytes
from runtime.compile.outcome import Outcome, ProgramOutcome, SliceOutcome

_HEAD = ("program", "compile", "arguments", "outputs", "in place", "temporary", "code")


def document(outcome: Outcome) -> dict[str, Any]:
    """Everything, with what the tables compute from it."""
    data: dict[str, Any] = msgspec.to_builtins(outcome)
    data["is_good"] = outcome.is_good
    for row, part in zip(data["slices"], outcome.slices, strict=True):
        row |= {"is_good": part.is_good, "missing_bytes": part.missing_bytes}
        row["static"] |= {"pool_bytes": part.static.pool_bytes, "budget_bytes": part.static.budget_bytes}
        if part.need is not None:
            row["need"] |= {"total_bytes": part.need.total_bytes}
    return data


def print_outcome(outcome: Outcome, report: Report) -> None:
    """A table of programs and an account of memory for each kind of slice, then one line that says it all."""
    for part in outcome.slices:
        report.line()
        for line in _slice_lines(part):
            report.line(line)
    report.line()
    report.line(
        f"Sizes are the TPU compiler's for one device (libtpu {outcome.libtpu_version}, jax {outcome.jax_version}); "
        "nothing was run."
    )
    report.line(_verdict(outcome), style="bold green" if outcome.is_good else "bold red")


def _slice_lines(part: SliceOutcome) -> Iterator[str]:
    devices = "1 device" if part.tp == 1 else f"{part.tp} devices"
    yield f"{', '.join(part.names)}: {devices} each, attention {part.attention}"
    if part.programs:
        yield from _table([_HEAD, *(_cells(program) for program in part.programs if program.error is None)])
    for program in part.errors:
        yield f"  {program.name} does not compile: {program.error}"
    yield from _memory_lines(part)


def _cells(program: ProgramOutcome) -> tuple[str, ...]:
    sizes = (
        program.argument_bytes,
        program.output_bytes,
        program.alias_bytes,
        program.temporary_bytes,
        program.code_bytes,
    )
    return (program.name, f"{program.compile_s:.1f} s", *(human_bytes(size) for size in sizes))


def _table(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        first, *rest = (
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        yield "  " + "  ".join([first, *rest])


def _memory_lines(part: SliceOutcome) -> Iterator[str]:
    static = part.static
    share = f"{static.mem_fraction:g} of {human_bytes(static.hbm_bytes)}"
    tokens = (static.num_pages - 1) * part.page_size
    rows = [
        ("weights", human_bytes(static.weights_bytes)),
        (
            "KV pool",
            f"{human_bytes(static.pool_bytes)}, {static.num_pages - 1} pages of {part.page_size}: {tokens} tokens",
        ),
    ]
    if part.need is not None:
        need = part.need
        rows += [
            (f"state of {part.num_rows} rows", human_bytes(need.rows_bytes)),
            ("all programs", human_bytes(need.code_bytes)),
            ("largest temporaries", human_bytes(need.temporary_bytes)),
            ("together", f"{human_bytes(need.total_bytes)} of {human_bytes(static.hbm_bytes)}"),
        ]
    width = max(len(name) for name, _ in rows)
    yield from (f"  {name:<{width}}  {value}" for name, value in rows)
    if static.missing_bytes:
        yield (
            f"  DOES NOT FIT: weights and {'the smallest' if static.num_pages == 2 else 'that'} KV pool take "
            f"{human_bytes(static.missing_bytes)} more than {share} (--mem-fraction-static); programs not compiled"
        )
    elif part.missing_bytes:
        yield f"  DOES NOT FIT: {human_bytes(part.missing_bytes)} more than the device has"
    elif part.is_good:
        yield f"  fits: weights and KV pool within {share}, everything within the device"


def _verdict(outcome: Outcome) -> str:
    programs = sum(len(part.programs) for part in outcome.slices)
    bad = [part for part in outcome.slices if not part.is_good]
    if not bad:
        return f"All {programs} programs compile and every slice fits, {outcome.compile_s:.0f} s."
    told = []
    for part in bad:
        failed = len(part.errors)
        what = f"{failed} programs do not compile" if failed else f"{human_bytes(part.missing_bytes)} too little memory"
        told.append(f"{', '.join(part.names)}: {what}")
    return f"Not servable on {outcome.target}: {'; '.join(told)}."
