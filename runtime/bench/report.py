"""The benchmark's result: tables for people, JSON for machines."""

from pathlib import Path

import msgspec
from rich.console import Console
from rich.table import Table

from runtime.bench.machine import READ_BYTES, Machine
from runtime.bench.steps import DecodeTiming, PrefillTiming


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """Everything one run measured."""

    model: str
    dtype: str
    device: str
    jax_version: str
    cores: int
    machine: Machine
    prefill: list[PrefillTiming]
    decode: list[DecodeTiming]


def write_json(report: Report, path: Path) -> None:
    """The whole report, with what the tables compute from it."""
    document = msgspec.to_builtins(report)
    for row, timing in zip(document["decode"], report.decode, strict=True):
        row |= {
            "ratio": timing.ratio,
            "ratio_to_products": timing.ratio_to_products,
            "attention_s": timing.attention_s,
        }
    path.write_bytes(msgspec.json.format(msgspec.json.encode(document), indent=2) + b"\n")


def print_report(report: Report, console: Console) -> None:
    """Two tables under a line about the machine. Times are ms: median (min-max)."""
    machine = report.machine
    reads = ", ".join(f"{READ_BYTES / timing.median_s / 1e9:.1f} ({how})" for how, timing in machine.reads.items())
    console.print(
        f"{report.model} {report.dtype} on {report.device}, {report.cores} cores, jax {report.jax_version}\n"
        f"reads GB/s: {reads}; multiplies {machine.matmul_flop_per_s / 1e9:.0f} GFLOP/s; "
        "bounds take the best; products: the step's matrix products alone, through XLA; times in ms: median (min-max)"
    )
    console.print(_prefill_table(report.prefill))
    console.print(_decode_table(report.decode))


def _prefill_table(timings: list[PrefillTiming]) -> Table:
    table = Table("prefill tokens", "step", "tokens/s")
    for timing in timings:
        table.add_row(str(timing.tokens), str(timing.step), f"{timing.tokens / timing.step.median_s:.0f}")
    return table


def _decode_table(timings: list[DecodeTiming]) -> Table:
    table = Table(
        "decode batch", "context", "step", "tokens/s", "attention", "without attention", "bound", "x bound", "products",
        "x products",
    )  # fmt: skip
    for timing in timings:
        table.add_row(
            str(timing.batch),
            str(timing.context_tokens),
            str(timing.step),
            f"{timing.batch / timing.step.median_s:.1f}",
            f"{timing.attention_s * 1e3:.2f}",
            str(timing.without_attention),
            f"{timing.bound_s * 1e3:.2f}",
            f"{timing.ratio:.2f}",
            str(timing.products),
            f"{timing.ratio_to_products:.2f}",
        )
    return table
