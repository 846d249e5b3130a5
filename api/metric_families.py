"""Metrics as they are counted and as a scrape shows them: tables of numbers by label values.

Counting is what happens on every token, so it is a dictionary access and an addition; all else is left to the scrape.
Everything here belongs to the event loop's thread. What comes out are families of `prometheus_client`, which writes
them.
"""

from bisect import bisect_left
from collections.abc import Iterator, Mapping
from typing import Literal

import msgspec
from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

Kind = Literal["counter", "gauge", "histogram"]

FAST_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
"""Bounds for what a step or a token takes, seconds."""

REQUEST_S = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
"""Bounds for what a request or a stage of it takes, seconds."""

POWERS = tuple(float(2**power) for power in range(15))
"""Bounds for counts."""


class Definition(msgspec.Struct, frozen=True, kw_only=True):
    """What a metric is: its name as a scrape shows it, and what it tells.

    `alias` is the name by which dashboards made for vLLM know the same thing; it has the label `model_name` besides.
    """

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()
    bounds: tuple[float, ...] = ()
    alias: str = ""


class Numbers:
    """A counter or a gauge."""

    def __init__(self, definition: Definition) -> None:
        self.definition = definition
        self.values: dict[tuple[str, ...], float] = {}
        if not definition.labels:
            self.values[()] = 0.0

    def add(self, amount: float, *labels: str) -> None:
        """Adds to the number of these label values."""
        self.values[labels] = self.values.get(labels, 0.0) + amount

    def set(self, value: float, *labels: str) -> None:
        """Replaces the number of these label values."""
        self.values[labels] = value

    def families(self, extra: Mapping[str, str]) -> Iterator[Metric]:
        """What a scrape shows; `extra` labels go with the alias."""
        make = CounterMetricFamily if self.definition.kind == "counter" else GaugeMetricFamily
        for name, more in names(self.definition, extra):
            family = make(name, self.definition.help, labels=[*self.definition.labels, *more])
            for labels, value in self.values.items():
                family.add_metric([*labels, *more.values()], value)
            yield family


class Distribution:
    """A histogram: how many values were at most each bound, and their sum."""

    def __init__(self, definition: Definition) -> None:
        self.definition = definition
        self._bounds = definition.bounds
        self.counts: dict[tuple[str, ...], list[int]] = {}
        self.sums: dict[tuple[str, ...], float] = {}
        if not definition.labels:
            self._begin(())

    def _begin(self, labels: tuple[str, ...]) -> list[int]:
        self.sums[labels] = 0.0
        counts = self.counts[labels] = [0] * (len(self._bounds) + 1)
        return counts

    def observe(self, value: float, *labels: str) -> None:
        """Counts one value."""
        counts = self.counts.get(labels)
        if counts is None:
            counts = self._begin(labels)
        counts[bisect_left(self._bounds, value)] += 1
        self.sums[labels] += value

    def families(self, extra: Mapping[str, str]) -> Iterator[Metric]:
        """What a scrape shows; `extra` labels go with the alias."""
        for name, more in names(self.definition, extra):
            family = HistogramMetricFamily(name, self.definition.help, labels=[*self.definition.labels, *more])
            for labels, counts in self.counts.items():
                family.add_metric([*labels, *more.values()], self._buckets(counts), self.sums[labels])
            yield family

    def _buckets(self, counts: list[int]) -> list[tuple[str, float]]:
        buckets, total = list[tuple[str, float]](), 0
        for bound, count in zip((*map(str, self._bounds), "+Inf"), counts, strict=True):
            total += count
            buckets.append((bound, float(total)))
        return buckets


def names(definition: Definition, extra: Mapping[str, str]) -> list[tuple[str, Mapping[str, str]]]:
    """The name and the alias, each with the labels that go with it."""
    return [(definition.name, {})] + ([(definition.alias, extra)] if definition.alias else [])
