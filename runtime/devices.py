"""Which accelerator this process uses.

jax reads its environment once, so `choose_platform` runs before jax is imported; what can be refused without jax is
refused by `resolve_platform`, which changes nothing and can be asked as early as one likes. The platform is always
named: with libtpu installed, jax on a machine without a TPU complains loudly when it has to guess. A CPU is
split into one virtual device per device of the topology.
"""

import os
import re
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from runtime.errors import UsageError
from runtime.settings import DeviceKind, Platform
from runtime.topology import Topology, default_topology

if TYPE_CHECKING:
    import jax

MAX_VIRTUAL_DEVICES = 64
_COUNT_FLAG = "--xla_force_host_platform_device_count"
_JAX_PLATFORMS: dict[Platform, str] = {"cpu": "cpu", "tpu": "tpu,cpu", "gpu": "cuda,cpu"}
_PLUGINS: dict[str, tuple[str, ...]] = {
    "tpu": ("libtpu",),
    "gpu": ("jax_cuda12_plugin", "jax_cuda13_plugin"),
}
_NODES: dict[str, tuple[str, ...]] = {"tpu": ("accel*", "vfio/[0-9]*"), "gpu": ("nvidia[0-9]*", "dxg")}
_ALIASES: dict[str, Platform] = {"cpu": "cpu", "tpu": "tpu", "gpu": "gpu", "cuda": "gpu"}


def resolve_platform(kind: DeviceKind, topology: Topology | None, tp: int = 1) -> Platform:
    """The platform, checked as far as that is possible without jax; nothing is changed.

    Without a topology, one slice of `tp` devices must fit at least.
    `JAX_PLATFORMS` from the operator wins over `auto` and must not contradict an explicit kind. Raises UsageError
    when the machine has no such accelerator or when a CPU has too few virtual devices for the topology.
    """
    wanted = os.environ.get("JAX_PLATFORMS", "")
    platform = _named(kind, wanted)
    if platform != "cpu" and not _is_there(platform):
        named_by = "" if kind == platform else f", which JAX_PLATFORMS={wanted} names"
        raise UsageError(
            f"--device {platform}{named_by}: this machine shows no {platform} or jax has no plugin for it; allowed: cpu"
        )
    if platform == "cpu":
        _check_virtual(topology or default_topology(tp, tp))
    return platform


def choose_platform(kind: DeviceKind, topology: Topology | None, tp: int = 1) -> Platform:
    """The platform, with the environment set that jax reads when it is imported.

    Without a topology a CPU is split into 2 x `tp` devices, for a prefill and a decode slice, or as many as it can be
    where that is less. What is already in `XLA_FLAGS` stays, a device count among it. Raises UsageError as
    `resolve_platform` does.
    """
    platform = resolve_platform(kind, topology, tp)
    if platform == "cpu":
        _split_cpu(topology.num_devices if topology is not None else min(2 * tp, MAX_VIRTUAL_DEVICES))
    if not os.environ.get("JAX_PLATFORMS"):
        os.environ["JAX_PLATFORMS"] = _JAX_PLATFORMS[platform]
    return platform


def find_devices(platform: Platform) -> "list[jax.Device]":
    """The devices of the chosen platform. Raises UsageError if jax cannot start it."""
    import jax

    try:
        return list(jax.local_devices())
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise UsageError(f"--device {platform}: jax finds no such device ({reason}); allowed: cpu") from error


def check_fits(topology: Topology, num_devices: int, platform: Platform) -> None:
    """Raises UsageError when there are fewer devices than the slices need."""
    if topology.num_devices > num_devices:
        raise UsageError(
            f"--topology {str(topology)!r}: needs {topology.num_devices} devices, "
            f"allowed: at most the {num_devices} {platform} devices that there are"
        )


def free_host_bytes() -> int:
    """Memory that the machine can still give without swapping."""
    try:
        text = Path("/proc/meminfo").read_text()
    except OSError:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    match = re.search(r"^MemAvailable:\s+(\d+) kB$", text, re.MULTILINE)
    return int(match[1]) * 1024 if match else 0


def _named(kind: DeviceKind, wanted: str) -> Platform:
    named = _ALIASES.get(wanted.split(",")[0])
    if kind == "auto":
        return named or _probe()
    if wanted and named != kind:
        raise UsageError(f"--device {kind}: JAX_PLATFORMS is {wanted!r}; allowed: the same kind in both")
    return kind


def _probe() -> Platform:
    for platform in ("tpu", "gpu"):
        if _is_there(platform):
            return _ALIASES[platform]
    return "cpu"


def _is_there(platform: str) -> bool:
    """An accelerator counts when the machine shows its device node and jax has the plugin for it."""
    plugged = any(find_spec(plugin) is not None for plugin in _PLUGINS[platform])
    if platform == "tpu" and os.environ.get("TPU_LIBRARY_PATH"):
        plugged = True
    return plugged and any(any(Path("/dev").glob(pattern)) for pattern in _NODES[platform])


def _check_virtual(topology: Topology) -> None:
    """Raises UsageError when the CPU is not, or cannot be, split into as many devices as the slices need."""
    flags = os.environ.get("XLA_FLAGS", "")
    given = re.findall(rf"{_COUNT_FLAG}=(\d{{1,9}})\b", flags)
    if given:
        check_fits(topology, int(given[-1]), "cpu")
    elif _COUNT_FLAG not in flags and topology.num_devices > MAX_VIRTUAL_DEVICES:
        raise UsageError(
            f"--topology {str(topology)!r}: needs {topology.num_devices} devices; "
            f"allowed: at most {MAX_VIRTUAL_DEVICES} virtual ones on a CPU"
        )


def _split_cpu(num_devices: int) -> None:
    flags = os.environ.get("XLA_FLAGS", "")
    if _COUNT_FLAG not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} {_COUNT_FLAG}={num_devices}".strip()
