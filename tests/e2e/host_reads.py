"""A count of reads of KV into host memory, for tests that want none."""

import numpy as np
import pytest
from jax._src.array import ArrayImpl


class HostReads:
    """Counts reads into host memory, on any thread, of arrays of so many axes: by default the pool's or a chunk's."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, min_axes: int = 5) -> None:
        self.count = 0
        original = ArrayImpl._value

        def value(array: ArrayImpl) -> np.ndarray:
            if array.ndim >= min_axes:
                self.count += 1
            return original.fget(array)

        monkeypatch.setattr(ArrayImpl, "_value", property(value))
