"""The rates that turn bundles and bytes into time."""

import msgspec
from jax.experimental.pallas import tpu as pltpu

from kernels.aot import GENERATIONS, Target


class Chip(msgspec.Struct, frozen=True, kw_only=True):
    """One TensorCore and its share of the chip's HBM."""

    target: str
    clock_hz: float
    hbm_bytes_per_s: float
    peak_flop_per_s: float
    """For bfloat16."""
    vmem_bytes: int

    def issue_s(self, bundles: float) -> float:
        """Seconds to issue this many bundles, one a cycle."""
        return bundles / self.clock_hz

    def memory_s(self, num_bytes: float) -> float:
        """Seconds to move this many bytes at full bandwidth."""
        return num_bytes / self.hbm_bytes_per_s


def chip_of(target: Target) -> Chip:
    """The rates of a TensorCore of the target: the clock of `kernels.aot`, the others as jax knows them."""
    info = pltpu.get_tpu_info_for_chip(pltpu.ChipVersion(GENERATIONS[target.generation].chip_version), 1)
    return Chip(
        target=str(target),
        clock_hz=target.clock_ghz * 1e9,
        hbm_bytes_per_s=float(info.mem_bw_bytes_per_second),
        peak_flop_per_s=float(info.bf16_ops_per_second),
        vmem_bytes=info.vmem_capacity_bytes,
    )
