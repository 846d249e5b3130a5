"""Which code computes an op: plain JAX, the Pallas TPU kernel, or that kernel in the TPU interpreter.

Nothing falls back: an op that is asked for a kernel runs the kernel or raises ValueError.
"""

from typing import Literal, cast, get_args

import jax
from jax.experimental.pallas import tpu as pltpu

from kernels.checks import require

Implementation = Literal["xla", "pallas", "pallas-interpret"]
"""`xla` runs everywhere, `pallas` on a TPU, `pallas-interpret` is the same kernel on a CPU (slow; for tests)."""

IMPLEMENTATIONS: tuple[str, ...] = get_args(Implementation)


def resolve(op: str, implementation: str | None) -> Implementation:
    """The implementation of `op` to run; None picks `pallas` where jax's default backend is a TPU, else `xla`.

    Raises ValueError for a name that is none of them.
    """
    if implementation is None:
        return "pallas" if jax.default_backend() == "tpu" else "xla"
    require(
        implementation in IMPLEMENTATIONS,
        f"{op}: implementation={implementation!r} is not one of {', '.join(IMPLEMENTATIONS)}",
    )
    return cast(Implementation, implementation)


def interpret_mode(implementation: Implementation) -> pltpu.InterpretParams | bool:
    """What `pallas_call` takes as `interpret` for one of the two kernel implementations."""
    return pltpu.InterpretParams() if implementation == "pallas-interpret" else False
