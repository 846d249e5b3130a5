"""Figures of a model's kernels, in a process of its own: `python -m runtime.compile.kernel_schedules JSON`.

The compiler writes schedules only if its process was started for it, and then of all that it compiles: gigabytes for a
model. So the kernels are compiled alone, by a child of the process that compiles the model's programs.
"""

import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import msgspec

from kernels import aot
from runtime.errors import UsageError

if TYPE_CHECKING:
    from runtime.compile.kernel_figures import KernelFigures

_LIMIT_S = 1200


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """Which kernels: the target, the heads of one device, page size and element type."""

    target: str
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    page_size: int
    dtype: str


def figures_of(asked: Asked) -> "KernelFigures":
    """The figures, from a child process. Raises UsageError with the compiler's reason if there are none."""
    from runtime.compile.kernel_figures import KernelFigures

    done = subprocess.run(
        [sys.executable, "-m", "runtime.compile.kernel_schedules", msgspec.json.encode(asked).decode()],
        capture_output=True,
        timeout=_LIMIT_S,
        check=False,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    if done.returncode:
        lines = done.stderr.decode(errors="replace").split("\n")
        reason = next((line for line in reversed(lines) if line.strip()), "no reason given")
        raise UsageError(f"--step-times: no figures of the kernels: {reason[:500]}")
    return msgspec.json.decode(done.stdout, type=KernelFigures)


def compile_kernels(asked: Asked) -> "KernelFigures":
    """The figures, in this process; jax must not be imported before."""
    target = aot.parse_target(asked.target)
    with TemporaryDirectory(prefix="runtime-schedules-") as folder:
        aot.set_environment(target, folder)
        from kernels.compile.cases import Shape, decode_case, prefill_case
        from kernels.report import programs
        from kernels.report.chip import chip_of
        from kernels.report.compiler import ScheduleCompiler
        from kernels.report.figures import decode_figures, prefill_figures
        from kernels.report.moves import move_figures
        from kernels.shapes import Heads
        from runtime.compile.kernel_figures import DecodeKernel, KernelFigures, PrefillKernel
        from runtime.compile.walk import KernelTime, Rates

        heads = Heads(asked.num_layers, asked.num_heads, asked.num_kv_heads, asked.head_dim)
        shape = Shape("", heads, asked.page_size, asked.dtype)
        chip, compiler = chip_of(target), ScheduleCompiler(aot.one_device(target), Path(folder))
        decoding, prefilling = programs.decode_program(shape), programs.prefill_program(shape)
        decode = decode_figures(compiler.schedule(decoding.kernel, decode_case(shape)), decoding, chip, ())
        prefill = prefill_figures(compiler.schedule(prefilling.kernel, prefill_case(shape)), prefilling, chip, ())
        moves = [
            move_figures(compiler.schedule(program.kernel, case), program, chip)
            for program, case in programs.moves_of(shape)
        ]
        apart, in_a_row, gather, scatter = (KernelTime(each.issue_s, each.memory_s) for each in moves)
        config = programs.prefill_config(shape)
        masked_bundles = prefill.masked.bundles - prefill.masked_step_bundles if prefill.masked else 0
        return KernelFigures(
            rates=Rates(
                clock_hz=chip.clock_hz,
                hbm_bytes_per_s=chip.hbm_bytes_per_s,
                peak_flop_per_s=chip.peak_flop_per_s,
            ),
            page_size=shape.page_size,
            page_bytes=shape.page_bytes,
            decode=DecodeKernel(
                sequence_bundles=decode.sequence_bundles,
                block_bundles=decode.block.bundles,
                block_pages=decoding.block_pages,
            ),
            prefill=PrefillKernel(
                query_tokens=config.query_tokens,
                key_tokens=config.key_tokens,
                kv_heads=config.kv_heads,
                num_parts=heads.num_kv_heads // config.kv_heads,
                block_bytes=prefilling.block_bytes,
                outside_bundles=prefill.outside_bundles,
                unmasked_bundles=prefill.unmasked.bundles,
                masked_bundles=masked_bundles,
                step_bundles=prefill.masked_step_bundles,
            ),
            write_apart=apart,
            write_in_a_row=in_a_row,
            gather=gather,
            scatter=scatter,
        )


if __name__ == "__main__":
    sys.stdout.buffer.write(msgspec.json.encode(compile_kernels(msgspec.json.decode(sys.argv[1], type=Asked))))
