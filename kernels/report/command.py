"""The command line of the report."""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from kernels import aot
from kernels.console import make_console

OPS = ("paged_decode", "chunked_prefill", "moves")


def main(argv: Sequence[str] | None = None) -> int:
    """Compiles, prints tables, returns 1 if a kernel of the project did not compile. Raises ValueError and others."""
    flags = _parser().parse_args(argv)
    target = aot.parse_target(flags.target)
    with tempfile.TemporaryDirectory(prefix="schedules-") as dump_dir:
        aot.set_environment(target, dump_dir)

        from kernels.report.chip import chip_of
        from kernels.report.compiler import ScheduleCompiler
        from kernels.report.document import Report, empty_report, read_json, write_json
        from kernels.report.plan import Plan, make_report
        from kernels.report.sheets import print_sheet, to_markdown
        from kernels.report.summary import heading, sheets

        console = make_console()
        compiler = ScheduleCompiler(aot.one_device(target), Path(dump_dir))
        start = empty_report(chip_of(target))
        earlier = [read_json(path, start) for path in flags.comparison]
        plan = Plan(ops=flags.op or OPS, heads=flags.heads, compare=not flags.without_comparison, earlier=earlier)

        def save(report: Report) -> None:
            if flags.json is not None:
                write_json(report, flags.json)

        report = make_report(plan, start, compiler, console, save)

    tables = sheets(report)
    console.print(heading(report))
    for sheet in tables:
        print_sheet(sheet, console)
    if flags.markdown is not None:
        flags.markdown.write_text(f"{heading(report)}\n\n{to_markdown(tables)}")
    ours = [refused for refused in report.refused if refused.kernel in OPS]
    for refused in report.refused:
        reason = refused.reason if refused in ours else refused.reason.splitlines()[0]
        print(f"not compiled: {refused.kernel} {refused.shape}: {reason}", file=sys.stderr)  # noqa: T201
    return 1 if ours else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m kernels.report",
        description="What the TPU compiler plans for the kernels, beside jax's own attention kernel. All estimates.",
    )
    parser.add_argument("--target", default="v6e", help="v5e, v6e or tpu7x (default: %(default)s)")
    parser.add_argument("--op", action="append", choices=OPS, help="only this op; may be repeated")
    parser.add_argument(
        "--heads", action="append", metavar="N/K", help="only these query and kv heads, as 12/2; may be repeated"
    )
    comparison = parser.add_mutually_exclusive_group()
    comparison.add_argument(
        "--comparison",
        action="append",
        default=[],
        type=Path,
        metavar="FILE",
        help="take the figures of jax's kernel, whose sweep takes long, from this earlier report of the same compiler; "
        "may be repeated",
    )
    comparison.add_argument("--without-comparison", action="store_true", help="leave jax's kernel out")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there, after every program")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the tables there as Markdown")
    return parser
