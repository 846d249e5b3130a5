"""Plots as SVG text, which a page holds without scripts or files: lines, points and error bars on labelled axes.

Colours are CSS classes `s0`, `s1`, ... of the page, so that light and dark follow the reader.
"""

import math
from collections.abc import Sequence
from html import escape

import msgspec

WIDTH, HEIGHT = 560, 300
LEFT, RIGHT, TOP, BOTTOM = 66, 14, 14, 42
NUM_COLOURS = 6
FRAME, LEAST_TICKS = 0.05, 3
DODGE, CAP = 4, 4
"""How far error bars of the next colour stand aside, and half the width of their ends."""


class Series(msgspec.Struct, frozen=True, kw_only=True):
    """What belongs together: a line through its points, or the points alone.

    `spans` has the low and high end of each point's interval, drawn as error bars beside those of other colours. A
    reference is no measurement but what measurements are held against; it has no colour.
    """

    name: str
    points: Sequence[tuple[float, float]]
    colour: int = 0
    is_line: bool = True
    is_dashed: bool = False
    is_reference: bool = False
    spans: Sequence[tuple[float, float]] = ()

    @property
    def style(self) -> str:
        """Its class on the page."""
        return "reference" if self.is_reference else f"s{self.colour % NUM_COLOURS}"


class Axis:
    """From values to positions, linear or logarithmic, with round numbers to label.

    A linear axis shows 0, unless it is framed: then values keep off both ends, and 0 is shown only if it is one.
    """

    def __init__(
        self, values: Sequence[float], begin: float, end: float, is_log: bool = False, is_framed: bool = False
    ) -> None:
        finite = [value for value in values if math.isfinite(value) and (value > 0 or not is_log)] or [1.0]
        self._is_log = is_log
        self._low = min(finite) if is_log or is_framed else min(0.0, *finite)
        self._high = max(finite)
        if self._high <= self._low:
            self._high = self._low * 2 if is_log else self._low + 1
        margin = FRAME * (end - begin) if is_framed else 0.0
        self._begin, self._end = begin + margin, end - margin

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
            ticks = [
                step * 10**power for power in powers for step in steps if self._low <= step * 10**power <= self._high
            ]
            if len(ticks) >= LEAST_TICKS:
                return ticks
        step = _round_step((self._high - self._low) / 5)
        first = math.ceil(self._low / step)
        return [index * step for index in range(first, math.floor(self._high / step + 1e-9) + 1)]


def _round_step(rough: float) -> float:
    power: float = 10.0 ** math.floor(math.log10(rough))
    return next(step * power for step in (1, 2, 5, 10) if step * power >= rough * (1 - 1e-9))


def plot(
    series: Sequence[Series],
    x_text: str,
    y_text: str,
    *,
    is_x_log: bool = False,
    is_y_log: bool = False,
    is_framed: bool = False,
) -> str:
    """Lines, points and error bars over both axes, with a legend when there is more than one name."""
    points = [point for one in series for point in one.points]
    ends = [end for one in series for span in one.spans for end in span]
    x = Axis([point[0] for point in points], LEFT, WIDTH - RIGHT, is_x_log, is_framed)
    y = Axis([*(point[1] for point in points), *ends], HEIGHT - BOTTOM, TOP, is_y_log, is_framed)
    parts = [_grid(x, y), _labels(x_text, y_text), *(_series(one, x, y) for one in series if one.points)]
    return svg(parts, HEIGHT, f"{y_text} over {x_text}") + _legend(series)


def svg(parts: Sequence[str], height: float, title: str) -> str:
    """A picture of this height, in the plots' width; `title` is for those who cannot see it."""
    return (
        f'<svg viewBox="0 0 {WIDTH} {height:.0f}" role="img" aria-label="{escape(title)}">'
        f"<title>{escape(title)}</title>{''.join(parts)}</svg>"
    )


def _grid(x: Axis, y: Axis) -> str:
    lines = [x_tick(x, tick, HEIGHT - BOTTOM) for tick in x.ticks()]
    lines += [
        f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y.place(tick):.1f}" y2="{y.place(tick):.1f}"/>'
        f'<text class="tick" text-anchor="end" x="{LEFT - 6}" y="{y.place(tick) + 4:.1f}">{tick:.4g}</text>'
        for tick in y.ticks()
    ]
    return "".join(lines)


def x_tick(x: Axis, tick: float, base: float) -> str:
    """A line up from the axis at `base`, and its number below."""
    at = x.place(tick)
    return (
        f'<line class="grid" x1="{at:.1f}" x2="{at:.1f}" y1="{TOP}" y2="{base:.1f}"/>'
        f'<text class="tick" text-anchor="middle" x="{at:.1f}" y="{base + 16:.1f}">{tick:.4g}</text>'
    )


def _labels(x_text: str, y_text: str) -> str:
    middle = (TOP + HEIGHT - BOTTOM) / 2
    turned = f'<text class="label" transform="translate(13 {middle}) rotate(-90)">{escape(y_text)}</text>'
    return x_label(x_text, HEIGHT) + turned


def x_label(text: str, height: float) -> str:
    """What the x axis shows, below its numbers."""
    return f'<text class="label" x="{(LEFT + WIDTH - RIGHT) / 2}" y="{height - 6}">{escape(text)}</text>'


def _series(series: Series, x: Axis, y: Axis) -> str:
    colour = series.style
    # Intervals of several series at one x would hide each other.
    aside = series.colour % NUM_COLOURS * DODGE if series.spans else 0
    placed = [(x.place(at) + aside, y.place(value)) for at, value in series.points]
    bars = _error_bars(placed, series.spans, colour, y)
    if series.is_line:
        dashes = ' stroke-dasharray="5 4"' if series.is_dashed else ""
        text = " ".join(f"{at:.1f},{value:.1f}" for at, value in placed)
        return f'<polyline class="line {colour}"{dashes} points="{text}"/>{bars}'
    radius = 4 if series.spans else 2.2
    dots = [f'<circle cx="{at:.1f}" cy="{value:.1f}" r="{radius}"/>' for at, value in placed]
    return f'<g class="{"marks" if series.spans else "dots"} {colour}">{"".join(dots)}</g>{bars}'


def _error_bars(
    placed: Sequence[tuple[float, float]], spans: Sequence[tuple[float, float]], colour: str, y: Axis
) -> str:
    if not spans:
        return ""
    drawn = [
        f"M{at - CAP:.1f},{y.place(low):.1f}h{2 * CAP}m{-CAP},0V{y.place(high):.1f}m{-CAP},0h{2 * CAP}"
        for (at, _), (low, high) in zip(placed, spans, strict=True)
    ]
    return f'<path class="errors {colour}" d="{"".join(drawn)}"/>'


def _legend(series: Sequence[Series]) -> str:
    names = dict.fromkeys(one.name for one in series if one.name)
    if len(names) < 2:
        return ""
    keys = list[str]()
    for name in names:
        named = [one for one in series if one.name == name]
        style = named[0].style + (" dashed" if all(one.is_dashed for one in named) else "")
        keys.append(f'<span><i class="{style}"></i>{escape(name)}</span>')
    return f'<p class="legend">{"".join(keys)}</p>'
