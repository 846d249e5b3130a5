"""Plots as SVG text, which a page holds without scripts or files: lines, points and bars on labelled axes.

Colours are CSS classes `s0`, `s1`, ... of the page, so that light and dark follow the reader.
"""

import math
from collections.abc import Sequence
from html import escape

import msgspec

WIDTH, HEIGHT = 560, 300
LEFT, RIGHT, TOP, BOTTOM = 58, 14, 14, 42
NUM_COLOURS = 6


class Series(msgspec.Struct, frozen=True, kw_only=True):
    """What belongs together: a line through its points, or the points alone."""

    name: str
    points: Sequence[tuple[float, float]]
    colour: int = 0
    is_line: bool = True
    is_dashed: bool = False


class Bar(msgspec.Struct, frozen=True):
    """A horizontal bar of a timeline, in a row."""

    row: int
    begin: float
    end: float
    style: str


class Axis:
    """From values to positions, linear or logarithmic, with round numbers to label."""

    def __init__(self, values: Sequence[float], begin: float, end: float, is_log: bool = False) -> None:
        finite = [value for value in values if math.isfinite(value) and (value > 0 or not is_log)] or [1.0]
        self._is_log = is_log
        self._low = min(finite) if is_log else min(0.0, *finite)
        self._high = max(finite)
        if self._high <= self._low:
            self._high = self._low * 2 if is_log else self._low + 1
        self._begin, self._end = begin, end

    def place(self, value: float) -> float:
        """The position of a value."""
        if self._is_log:
            value = max(value, self._low)
            share = math.log(value / self._low) / math.log(self._high / self._low)
        else:
            share = (value - self._low) / (self._high - self._low)
        return self._begin + share * (self._end - self._begin)

    def ticks(self) -> list[float]:
        """Round values inside."""
        if self._is_log:
            powers = range(math.floor(math.log10(self._low)), math.ceil(math.log10(self._high)) + 1)
            steps = (1, 2, 5) if self._high / self._low <= 300 else (1,)
            return [
                step * 10**power for power in powers for step in steps if self._low <= step * 10**power <= self._high
            ]
        step = _round_step((self._high - self._low) / 5)
        first = math.ceil(self._low / step)
        return [index * step for index in range(first, math.floor(self._high / step + 1e-9) + 1)]


def _round_step(rough: float) -> float:
    power: float = 10.0 ** math.floor(math.log10(rough))
    return next(step * power for step in (1, 2, 5, 10) if step * power >= rough * (1 - 1e-9))


def plot(series: Sequence[Series], x_label: str, y_label: str, is_x_log: bool = False) -> str:
    """Lines and points over both axes, with a legend when there is more than one name."""
    points = [point for one in series for point in one.points]
    x = Axis([point[0] for point in points], LEFT, WIDTH - RIGHT, is_x_log)
    y = Axis([point[1] for point in points], HEIGHT - BOTTOM, TOP)
    parts = [_grid(x, y), _labels(x_label, y_label), *(_series(one, x, y) for one in series if one.points)]
    return _svg(parts, HEIGHT, f"{y_label} over {x_label}") + _legend(series)


def timeline(bars: Sequence[Bar], num_rows: int, x_label: str) -> str:
    """A row per request."""
    height = TOP + BOTTOM + max(40, min(4 * num_rows, 900))
    x = Axis([bar.end for bar in bars], LEFT, WIDTH - RIGHT)
    step = (height - TOP - BOTTOM) / max(1, num_rows)
    parts = [
        f'<rect class="{bar.style}" x="{x.place(bar.begin):.2f}" y="{TOP + bar.row * step:.2f}" '
        f'width="{max(0.3, x.place(bar.end) - x.place(bar.begin)):.2f}" height="{max(0.5, step * 0.8):.2f}"/>'
        for bar in bars
    ]
    base = height - BOTTOM
    ticks = [_x_tick(x, tick, base) for tick in x.ticks()]
    label = f'<text class="label" x="{(LEFT + WIDTH - RIGHT) / 2}" y="{height - 6}">{escape(x_label)}</text>'
    return _svg([*ticks, *parts, label], height, "timeline of requests")


def _svg(parts: Sequence[str], height: float, title: str) -> str:
    return (
        f'<svg viewBox="0 0 {WIDTH} {height:.0f}" role="img" aria-label="{escape(title)}">'
        f"<title>{escape(title)}</title>{''.join(parts)}</svg>"
    )


def _grid(x: Axis, y: Axis) -> str:
    lines = [_x_tick(x, tick, HEIGHT - BOTTOM) for tick in x.ticks()]
    lines += [
        f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y.place(tick):.1f}" y2="{y.place(tick):.1f}"/>'
        f'<text class="tick" text-anchor="end" x="{LEFT - 6}" y="{y.place(tick) + 4:.1f}">{tick:.4g}</text>'
        for tick in y.ticks()
    ]
    return "".join(lines)


def _x_tick(x: Axis, tick: float, base: float) -> str:
    at = x.place(tick)
    return (
        f'<line class="grid" x1="{at:.1f}" x2="{at:.1f}" y1="{TOP}" y2="{base:.1f}"/>'
        f'<text class="tick" text-anchor="middle" x="{at:.1f}" y="{base + 16:.1f}">{tick:.4g}</text>'
    )


def _labels(x_label: str, y_label: str) -> str:
    middle = (TOP + HEIGHT - BOTTOM) / 2
    return (
        f'<text class="label" x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 6}">{escape(x_label)}</text>'
        f'<text class="label" transform="translate(13 {middle}) rotate(-90)">{escape(y_label)}</text>'
    )


def _series(series: Series, x: Axis, y: Axis) -> str:
    colour = f"s{series.colour % NUM_COLOURS}"
    placed = [(x.place(at), y.place(value)) for at, value in series.points]
    if series.is_line:
        dashes = ' stroke-dasharray="5 4"' if series.is_dashed else ""
        text = " ".join(f"{at:.1f},{value:.1f}" for at, value in placed)
        return f'<polyline class="line {colour}"{dashes} points="{text}"/>'
    dots = [f'<circle cx="{at:.1f}" cy="{value:.1f}" r="2.2"/>' for at, value in placed]
    return f'<g class="dots {colour}">{"".join(dots)}</g>'


def _legend(series: Sequence[Series]) -> str:
    names = {one.name: one.colour % NUM_COLOURS for one in series if one.name}
    if len(names) < 2:
        return ""
    keys = [f'<span><i class="s{colour}"></i>{escape(name)}</span>' for name, colour in names.items()]
    return f'<p class="legend">{"".join(keys)}</p>'
