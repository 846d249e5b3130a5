"""What a slice needs of each device's memory, from its parts. Pure; sizes are bytes on one device of the slice."""

import msgspec

from runtime.kv_cache import SMALLEST_POOL_PAGES, PoolShape, accelerator_pages


class Static(msgspec.Struct, frozen=True, kw_only=True):
    """What lies on a device all the time: weights and KV pool, within a share of its memory."""

    weights_bytes: int
    page_bytes: int
    num_pages: int
    hbm_bytes: int
    mem_fraction: float

    @property
    def pool_bytes(self) -> int:
        """The KV pool."""
        return self.num_pages * self.page_bytes

    @property
    def budget_bytes(self) -> int:
        """What weights and pool may take together."""
        return int(self.hbm_bytes * self.mem_fraction)

    @property
    def missing_bytes(self) -> int:
        """How much more memory weights and pool would need; 0 if they fit."""
        return max(self.weights_bytes + self.pool_bytes - self.budget_bytes, 0)


class Need(msgspec.Struct, frozen=True, kw_only=True):
    """All that a device has to hold at once: what is static, the rows' state, all programs, and the largest of their
    temporaries with the outputs that are new arrays.
    """

    static: Static
    rows_bytes: int
    code_bytes: int
    temporary_bytes: int

    @property
    def total_bytes(self) -> int:
        """Everything together."""
        static = self.static.weights_bytes + self.static.pool_bytes
        return static + self.rows_bytes + self.code_bytes + self.temporary_bytes

    @property
    def missing_bytes(self) -> int:
        """How much more memory the device would need; 0 if everything fits."""
        return max(self.total_bytes - self.static.hbm_bytes, self.static.missing_bytes, 0)


def plan_static(
    pool: PoolShape,
    *,
    weights_bytes: int,
    hbm_bytes: int,
    mem_fraction: float,
    num_devices: int,
    num_pages: int | None,
    num_rows: int,
    max_context_tokens: int,
) -> Static:
    """Weights and pool of a slice of `num_devices`: `num_pages` pages, or with None all that fit, two at least."""
    if num_pages is None:
        free = int(hbm_bytes * mem_fraction) - weights_bytes
        fitting = accelerator_pages(
            pool, num_rows=num_rows, max_context_tokens=max_context_tokens, pool_bytes=free * num_devices
        )
        num_pages = max(fitting, SMALLEST_POOL_PAGES)
    return Static(
        weights_bytes=weights_bytes,
        page_bytes=pool.page_bytes // num_devices,
        num_pages=num_pages,
        hbm_bytes=hbm_bytes,
        mem_fraction=mem_fraction,
    )
