"""Mean, deviation and percentiles of what was measured."""

import math
from collections.abc import Sequence

import msgspec

PERCENTILES = (50, 90, 95, 99)


class Summary(msgspec.Struct, frozen=True):
    """A sample, sorted. Everything is None when it is empty."""

    ordered: tuple[float, ...]

    @classmethod
    def of(cls, values: Sequence[float]) -> "Summary":
        """Of values in any order."""
        return cls(tuple(sorted(values)))

    @property
    def mean(self) -> float | None:
        """The average."""
        return math.fsum(self.ordered) / len(self.ordered) if self.ordered else None

    @property
    def std(self) -> float | None:
        """Of the sample as a population, as numpy's."""
        mean = self.mean
        if mean is None:
            return None
        return math.sqrt(math.fsum((value - mean) ** 2 for value in self.ordered) / len(self.ordered))

    @property
    def max(self) -> float | None:
        """The largest."""
        return self.ordered[-1] if self.ordered else None

    def percentile(self, percent: float) -> float | None:
        """Interpolated linearly between the two nearest values, as numpy does by default."""
        if not self.ordered:
            return None
        position = (len(self.ordered) - 1) * percent / 100
        low = math.floor(position)
        high = min(low + 1, len(self.ordered) - 1)
        return self.ordered[low] + (self.ordered[high] - self.ordered[low]) * (position - low)

    def statistic(self, name: str) -> float | None:
        """`mean`, `max`, or a percentile such as `p99.9`."""
        if name in ("mean", "max"):
            return self.mean if name == "mean" else self.max
        return self.percentile(float(name.removeprefix("p")))
