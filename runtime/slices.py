"""One warm engine per slice: weights on its devices, a KV pool in what is left, every program compiled."""

import contextlib
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import jax
import msgspec

from kernels.implementations import Implementation
from runtime.attention_backend import choose_backend
from runtime.cli.console import Advance, Report, human_bytes
from runtime.devices import free_host_bytes
from runtime.engine import EngineSpec
from runtime.errors import UsageError
from runtime.jax_engine import JaxEngine
from runtime.kv_cache import DEFAULT_MEM_FRACTION, PoolShape, pages_that_fit, pool_shape
from runtime.kv_mover import chunk_heads_of
from runtime.placement import Placement
from runtime.plan import Plan
from runtime.settings import Platform
from runtime.topology import Slice, Topology
from runtime.weights import load_weights, place


class Slices(msgspec.Struct, frozen=True, kw_only=True):
    """Slices on this process's devices, not built yet."""

    plan: Plan
    topology: Topology
    devices: tuple[jax.Device, ...]
    platform: Platform

    def build(self, report: Report) -> dict[str, JaxEngine]:
        """Engines by slice name, warm. Raises UsageError when weights do not fit their config or the memory."""
        with _memory_told():
            engines = self._engines(self._weights(report))
            report.table([("attention", self._attention())])
            report.table([(part.name, self._described(part, engines[part.name].spec)) for part in self.topology.slices])
            _warm_up(engines, report)
        return engines

    def _weights(self, report: Report) -> dict[str, Any]:
        """Each slice's own copy of the weights; the files are read once for each TP that there is."""
        params: dict[str, Any] = {}
        for tp in self._widths:
            first, *others = (part for part in self.topology.slices if len(part.devices) == tp)
            with report.progress(self._loading(tp), "bytes") as advance:
                loaded = load_weights(
                    self.plan.folder, self.plan.config, self.plan.config.dtype, self._placement(first), advance
                )
            params |= {first.name: loaded} | {part.name: place(loaded, self._placement(part)) for part in others}
        return params

    def _engines(self, params: Mapping[str, Any]) -> dict[str, JaxEngine]:
        """The pools of slices of equal TP are alike."""
        chunk_heads = chunk_heads_of(self.plan.config.num_kv_heads, frozenset(self._widths))
        specs = {tp: self._spec(tp) for tp in self._widths}
        return {
            part.name: JaxEngine(
                self.plan.config,
                params[part.name],
                specs[len(part.devices)],
                role=part.role,
                devices=self._devices_of(part),
                use_sort=self.plan.settings.use_sort_for_toppk_minp,
                kernels=self._kernels(len(part.devices))[0],
                chunk_heads=chunk_heads,
                checksums=self.plan.settings.verify_kv,
            )
            for part in self.topology.slices
        }

    def _spec(self, tp: int) -> EngineSpec:
        alike = [part for part in self.topology.slices if len(part.devices) == tp]
        num_pages = min(self._num_pages(self._devices_of(part)) for part in alike)
        return self.plan.spec(self.platform, num_pages=num_pages, page_bytes=self._pool_shape(tp).page_bytes)

    def _num_pages(self, devices: list[jax.Device]) -> int:
        settings = self.plan.settings
        if settings.num_pages is not None:
            return settings.num_pages
        fraction, max_bytes = settings.mem_fraction_static, None
        if self.platform == "cpu" and fraction is not None:
            max_bytes = int(fraction * free_host_bytes()) // len(self.topology.slices)
        return pages_that_fit(
            self._pool_shape(len(devices)),
            devices[0],
            num_rows=settings.sizes_for(self.platform).max_running_requests,
            max_context_tokens=self.plan.max_context_tokens,
            mem_fraction=fraction or DEFAULT_MEM_FRACTION,
            max_pool_bytes=max_bytes,
            num_devices=len(devices),
        )

    def _pool_shape(self, tp: int) -> PoolShape:
        page_size = self.plan.settings.sizes_for(self.platform).page_size
        kernels, _ = self._kernels(tp)
        return pool_shape(self.plan.config, page_size, self.platform, tp, kernels=kernels != "xla")

    def _kernels(self, tp: int) -> tuple[Implementation, str]:
        settings = self.plan.settings
        page_size = settings.sizes_for(self.platform).page_size
        return choose_backend(settings.attention_backend, self.platform, self.plan.config, page_size, tp)

    @property
    def _widths(self) -> tuple[int, ...]:
        """The TPs that there are, each once."""
        return tuple(dict.fromkeys(len(part.devices) for part in self.topology.slices))

    def _attention(self) -> str:
        """What computes attention, and why where that is not what a reader expects."""
        chosen = dict.fromkeys(self._kernels(tp) for tp in self._widths)
        return "; ".join(f"{name} ({reason})" if reason else name for name, reason in chosen)

    def _loading(self, tp: int) -> str:
        return "loading weights" if len(self._widths) == 1 else f"loading weights, TP {tp}"

    def _placement(self, part: Slice) -> Placement:
        return Placement(self._devices_of(part))

    def _devices_of(self, part: Slice) -> list[jax.Device]:
        return [self.devices[index] for index in part.devices]

    def _described(self, part: Slice, spec: EngineSpec) -> str:
        where = ", ".join(str(device) for device in self._devices_of(part))
        size = human_bytes(spec.num_pages * spec.page_bytes)
        return f"{where}: {spec.usable_pages} KV pages of {spec.page_size} tokens ({size}), {spec.num_rows} rows"


def _warm_up(engines: Mapping[str, JaxEngine], report: Report) -> None:
    for name, engine in engines.items():
        with report.progress(f"compiling {name}", "programs") as advance:
            engine.warm_up(partial(_advance, advance))


def _advance(advance: Advance, label: str, done: int, total: int) -> None:
    advance(done, total)


@contextlib.contextmanager
def _memory_told() -> Iterator[None]:
    """A device with too little memory is the operator's to know, in one line."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        reason = str(error).splitlines()[0]
        if "RESOURCE_EXHAUSTED" not in reason:
            raise
        raise UsageError(f"weights and KV do not fit: {reason}; allowed: fewer --num-pages or rows") from error
