"""What the Pallas kernels take in a step, from figures of their schedules. Pure; the compiler's estimates all of it.

XLA has no estimate of a Pallas kernel. Its schedule has: bundles of each loop, which `kernels.report` reads. From
these follow, for one layer of a step, the time that the core needs to issue it and the time of HBM for its bytes.
"""

import msgspec

from kernels.chunked_prefill.tuning import PrefillConfig
from kernels.report.programs import prefill_work
from runtime.compile.walk import KernelTime, Rates


class DecodeKernel(msgspec.Struct, frozen=True, kw_only=True):
    """`paged_decode`: bundles of a sequence outside the loop over blocks, and of a block of pages."""

    sequence_bundles: float
    block_bundles: int
    block_pages: int


class PrefillKernel(msgspec.Struct, frozen=True, kw_only=True):
    """`chunked_prefill`: how it cuts its work, and bundles of a block of queries outside its loops, of an unmasked
    block of keys, of a masked one without its steps, and of each step. `num_parts` passes over the kv heads.
    """

    query_tokens: int
    key_tokens: int
    kv_heads: int
    num_parts: int
    block_bytes: int
    outside_bundles: float
    unmasked_bundles: int
    masked_bundles: int
    step_bundles: int


class KernelFigures(msgspec.Struct, frozen=True, kw_only=True):
    """Figures of one model's kernels on one device. `page_bytes` are those of a layer's page.

    Writes are for a token, `gather` and `scatter` for a page of all layers.
    """

    rates: Rates
    page_size: int
    page_bytes: int
    decode: DecodeKernel
    prefill: PrefillKernel
    write_apart: KernelTime
    write_in_a_row: KernelTime
    gather: KernelTime
    scatter: KernelTime

    def of_step(self, *, tokens: int = 0, start: int = 0, rows: int = 0, context: int = 0) -> dict[str, KernelTime]:
        """One layer's calls in a step of `tokens` of one prompt after `start`, and of `rows` that hold `context` tokens
        before the one that each feeds.
        """
        found = {"kv_write": self._write(tokens, rows)}
        if tokens:
            found["chunked_prefill"] = self._prefill(tokens, start)
        if rows:
            found["paged_decode"] = self._decode(rows, context + 1)
        return found

    def _decode(self, rows: int, context: int) -> KernelTime:
        pages = -(-context // self.page_size)
        blocks = -(-pages // self.decode.block_pages)
        bundles = self.decode.sequence_bundles + blocks * self.decode.block_bundles
        return self._time(rows * bundles, rows * pages * self.page_bytes)

    def _prefill(self, tokens: int, start: int) -> KernelTime:
        own = self.prefill
        config = PrefillConfig(own.query_tokens, own.key_tokens, own.kv_heads)
        work = prefill_work(config, own.num_parts, start + tokens, tokens)
        bundles = work.query_blocks * own.outside_bundles + work.unmasked * own.unmasked_bundles
        bundles += work.masked * own.masked_bundles + work.masked_steps * own.step_bundles
        return self._time(bundles, (work.unmasked + work.masked) * own.block_bytes)

    def _write(self, tokens: int, rows: int) -> KernelTime:
        row, apart = self.write_in_a_row, self.write_apart
        return KernelTime(tokens * row.issue_s + rows * apart.issue_s, tokens * row.memory_s + rows * apart.memory_s)

    def _time(self, bundles: float, num_bytes: float) -> KernelTime:
        return KernelTime(bundles / self.rates.clock_hz, num_bytes / self.rates.hbm_bytes_per_s)
