"""The command line of the compile check."""

import argparse
import importlib.metadata
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from rich.console import Console

from kernels import aot
from kernels.compile import OPS
from kernels.console import make_console, progress

if TYPE_CHECKING:
    from kernels.compile.cases import Case
    from kernels.compile.run import Outcome


def main(argv: Sequence[str] | None = None) -> int:
    """Compiles, prints a line per case, and returns 1 if one failed. Raises ValueError and RuntimeError."""
    flags = _parser().parse_args(argv)
    target = aot.parse_target(flags.target)
    aot.set_environment(target)

    from kernels.compile.cases import all_cases, sample_cases

    cases = sample_cases() if flags.subset else all_cases()
    cases = [case for case in cases if (not flags.op or case.op in flags.op) and flags.match in case.name]
    if not cases:
        raise ValueError(f"no case matches --op {' '.join(flags.op or ['any'])} --match {flags.match!r}")
    return check(cases, target, make_console(), flags.json)


def check(cases: "Sequence[Case]", target: aot.Target, console: Console, json_file: Path | None) -> int:
    """Compiles the cases for the target, prints and writes the outcomes; 1 if a case failed."""
    outcomes = compile_all(cases, target, console)
    failed = [outcome for outcome in outcomes if outcome.failed]
    for outcome in failed:
        console.print(f"\nFAILED {outcome.name}\n{outcome.reason}")
    seconds = sum(outcome.compile_s for outcome in outcomes)
    console.print(f"{target}: {len(outcomes)} programs in {seconds:.0f} s, {len(failed)} failed")
    if json_file is not None:
        document = {"target": str(target), **versions(), "cases": outcomes}
        json_file.write_bytes(msgspec.json.format(msgspec.json.encode(document), indent=2) + b"\n")
    return 1 if failed else 0


def compile_all(cases: "Sequence[Case]", target: aot.Target, console: Console) -> "list[Outcome]":
    """Compiles case after case and prints a line for each."""
    from kernels.compile.run import compile_case

    mesh = aot.one_device(target)
    console.print(f"{target}, {', '.join(f'{name} {version}' for name, version in versions().items())}")
    width = max(len(case.name) for case in cases)
    console.print(f"{'program':<{width}}  {'compile':>8}  {'temporary':>10}  {'below':>10}  {'code':>10}")
    outcomes = []
    with progress(console, len(cases)) as step:
        for case in cases:
            step(case.name)
            outcome = compile_case(mesh, case)
            outcomes.append(outcome)
            console.print(describe(outcome, width))
    return outcomes


def describe(outcome: "Outcome", width: int) -> str:
    """One line of the table."""
    line = f"{outcome.name:<{width}}  {outcome.compile_s:6.1f} s"
    if outcome.failed and not outcome.code_bytes:
        return f"{line}  FAILED"
    sizes = (outcome.temp_bytes, outcome.max_temp_bytes, outcome.code_bytes)
    line += "".join(f"  {show_bytes(size):>10}" for size in sizes)
    return f"{line}  FAILED" if outcome.failed else line


def show_bytes(size: int) -> str:
    """A size in the largest unit of which it has one."""
    for unit, factor in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if size >= factor:
            return f"{size / factor:.1f} {unit}"
    return f"{size} B"


def versions() -> dict[str, str]:
    """The compiler's and jax's version."""
    return {name: importlib.metadata.version(name) for name in ("jax", "libtpu")}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m kernels.compile",
        description="Compile every kernel for a TPU that need not be there; exit 1 if one fails.",
    )
    parser.add_argument("--target", default="v6e", help="v5e, v6e or tpu7x (default: %(default)s)")
    parser.add_argument("--subset", action="store_true", help="the few cases that the tests compile")
    parser.add_argument("--op", action="append", choices=OPS, help="only this op; may be repeated")
    parser.add_argument("--match", default="", metavar="TEXT", help="only cases whose name contains TEXT")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the outcomes there too")
    return parser
