"""Compiling for a TPU that is not there: libtpu's compiler on any machine, through jax's ahead-of-time topologies.

The environment must be set before jax is imported, so this module imports jax only inside functions and a process
compiles for one target. What the compiler says (memory, schedules) are its estimates, not measurements.
"""

import math
import os
import re
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

    import jax
    from jax.sharding import Mesh

INSTALL_HINT = "libtpu, the TPU compiler, is not installed; install it with `pip install 'runtime[tpu]'`"


class Generation(NamedTuple):
    """A TPU generation: its name in accelerator types, devices of a chip, the clock that issue times assume, and the
    memory of a device that the compiler lets programs use.
    """

    accelerator: str
    chip_version: str
    devices_per_chip: int
    clock_ghz: float
    smallest: str
    hbm_gib: float


GENERATIONS = {
    "v5e": Generation("v5litepod", "v5e", 1, 1.5, "1x1", 15.75),
    "v6e": Generation("v6e", "v6e", 1, 1.75, "1x1", 31.24),
    "tpu7x": Generation("tpu7x", "7x", 2, 2.2, "1x1x1", 94.74),
}


class Target(NamedTuple):
    """Chips to compile for: a generation and how they are connected, as in `v6e:2x2`."""

    generation: str
    shape: tuple[int, ...]

    @property
    def num_devices(self) -> int:
        """jax devices of the target."""
        return math.prod(self.shape) * GENERATIONS[self.generation].devices_per_chip

    @property
    def clock_ghz(self) -> float:
        """Clock of a TensorCore, for turning bundles into time; approximate."""
        return GENERATIONS[self.generation].clock_ghz

    @property
    def hbm_bytes(self) -> int:
        """Memory of one device that programs may use, as the compiler states it when it refuses one."""
        return int(GENERATIONS[self.generation].hbm_gib * (1 << 30))

    def __str__(self) -> str:
        return f"{self.generation}:{'x'.join(map(str, self.shape))}"


def parse_target(text: str) -> Target:
    """`GENERATION[:AxB]`, for instance `v6e:2x2`; alone, a generation is its smallest shape.

    Raises ValueError that says what is allowed.
    """
    name, _, shape = text.partition(":")
    generation = GENERATIONS.get(name)
    axes = 0 if generation is None else generation.smallest.count("x") + 1
    shape = shape or (generation.smallest if generation and ":" not in text else "")
    if generation is None or not re.fullmatch(r"[1-9]\d{0,2}(x[1-9]\d{0,2})*", shape) or shape.count("x") + 1 != axes:
        allowed = ", ".join(f"{name}:{'x'.join('2' * (g.smallest.count('x') + 1))}" for name, g in GENERATIONS.items())
        raise ValueError(f"target {text!r}: allowed: a generation with its chips, as {allowed}")
    return Target(name, tuple(int(size) for size in shape.split("x")))


def is_installed() -> bool:
    """Whether libtpu is there."""
    return find_spec("libtpu") is not None


def environment(target: Target, dump_dir: str | None = None) -> dict[str, str]:
    """Variables that libtpu and jax read at start; with `dump_dir` the compiler writes its schedules there."""
    generation = GENERATIONS[target.generation]
    variables = {
        "TPU_SKIP_MDS_QUERY": "1",
        "JAX_PLATFORMS": "cpu",
        "TPU_ACCELERATOR_TYPE": f"{generation.accelerator}-{target.num_devices}",
        "TPU_WORKER_ID": "0",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    }
    if dump_dir is not None:
        flags = (f"--xla_jf_dump_to={dump_dir}", "--xla_jf_dump_llo_text=true", "--xla_jf_dump_hlo_text=true")
        variables["LIBTPU_INIT_ARGS"] = " ".join(flags)
    return variables


def set_environment(target: Target, dump_dir: str | None = None) -> None:
    """Makes this process one that compiles for `target`; before jax is imported. Raises RuntimeError without libtpu."""
    if not is_installed():
        raise RuntimeError(INSTALL_HINT)
    os.environ.update(environment(target, dump_dir))


def find_devices(target: Target) -> "list[jax.Device]":
    """The target's devices: they can be compiled for and hold nothing. Raises RuntimeError if libtpu refuses."""
    from jax.experimental import topologies

    return list(topologies.get_topology_desc(str(target), platform="tpu").devices)


def one_device(target: Target) -> "Mesh":
    """A mesh of the target's first device, axis "tp"; Pallas reads the chip from the mesh that is set."""
    import numpy as np
    from jax.sharding import Mesh

    return Mesh(np.array(find_devices(target)[:1]), ("tp",))


def compile_for(mesh: "Mesh", function: "Callable[..., Any]", *args: Any, donate: tuple[int, ...] = ()) -> Any:
    """`function` compiled for the mesh; every leaf of `args` is a ShapeDtypeStruct and lies whole on each device.

    Returns jax's compiled program, for `memory_analysis()` and the like. Raises what the compiler raises.
    """
    import jax
    from jax.sharding import NamedSharding, PartitionSpec

    spec: Any = PartitionSpec
    struct: Any = jax.ShapeDtypeStruct
    everywhere = NamedSharding(mesh, spec())
    placed = jax.tree.map(lambda x: struct(x.shape, x.dtype, sharding=everywhere), args)
    use_mesh: Any = jax.set_mesh
    with use_mesh(mesh):
        return jax.jit(function, donate_argnums=donate).lower(*placed).compile()
