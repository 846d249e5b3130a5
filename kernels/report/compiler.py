"""One kernel at a time through the compiler, for its schedule; the compiler's dumps never outlive the reading."""

import shutil
from pathlib import Path

from jax.sharding import Mesh

from kernels.aot import compile_for
from kernels.compile.cases import Case
from kernels.schedule import Schedule, read_schedule


class ScheduleCompiler:
    """Compiles for a mesh in a process whose environment names `dump_dir` as the compiler's dump folder."""

    def __init__(self, mesh: Mesh, dump_dir: Path) -> None:
        self._mesh = mesh
        self._dump_dir = dump_dir

    def schedule(self, kernel: str, case: Case) -> Schedule:
        """The schedule of the kernel called `kernel` in the case's program. Raises what the compiler raises."""
        try:
            compile_for(self._mesh, case.function, *case.args, donate=case.donate)
            return read_schedule(self._dump_dir, kernel)
        finally:
            for path in self._dump_dir.iterdir():
                if path.is_dir():
                    shutil.rmtree(path)
                else:
                    path.unlink()
