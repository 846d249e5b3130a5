"""The TPU interpreter at its strictest: unwritten memory is NaN, reads out of bounds raise, races are found."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from jax._src.pallas.mosaic.interpret import interpret_pallas_call
from jax.experimental.pallas import tpu as pltpu

VECTOR_CLOCK_SIZE = 256
"""Copies that the race detector tells apart. By default all share one clock, and waiting for any hides the others."""


@contextmanager
def strict_interpreter(dma: Literal["eager", "on_wait"] = "on_wait") -> Iterator[None]:
    """Runs kernels with implementation="pallas" in the interpreter.

    `dma` says when a copy happens: as soon as it is started, or not before somebody waits for it.
    """
    params = pltpu.InterpretParams(
        detect_races=True,
        uninitialized_memory="nan",
        out_of_bounds_reads="raise",
        dma_execution_mode=dma,
        vector_clock_size=VECTOR_CLOCK_SIZE,
    )
    try:
        with pltpu.force_tpu_interpret_mode(params):
            yield
    except BaseException:
        pltpu.reset_tpu_interpret_mode_state()
        raise


def races_found() -> bool:
    """Whether the last kernel that ran in the interpreter had a race."""
    races = interpret_pallas_call.races
    assert races is not None, "no kernel ran with race detection"
    return bool(races.races_found)
