"""Horizontal bars as SVG text: a timeline with a row per request, and stacks of what a mean is made of.

A bar's style is a CSS class of the page, such as `prefill`, so that a stage has one colour wherever it is drawn.
"""

from collections.abc import Sequence
from html import escape

import msgspec

from loadtest.charts import BOTTOM, LEFT, RIGHT, TOP, WIDTH, Axis, svg, x_label, x_tick

STACK_STEP, STACK_HEIGHT = 44, 18
STACK_LEFT = 14


class Bar(msgspec.Struct, frozen=True):
    """A horizontal bar of a timeline, in a row."""

    row: int
    begin: float
    end: float
    style: str


class Stack(msgspec.Struct, frozen=True):
    """A named row of parts that lie one after the other: (style, length) each."""

    name: str
    parts: tuple[tuple[str, float], ...]

    @property
    def length(self) -> float:
        """Of the whole row."""
        return sum(length for _, length in self.parts)


def timeline(bars: Sequence[Bar], num_rows: int, label: str) -> str:
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
    ticks = [x_tick(x, tick, base) for tick in x.ticks()]
    return svg([*ticks, *parts, x_label(label, height)], height, "timeline of requests")


def stacks(rows: Sequence[Stack], label: str) -> str:
    """A bar per row, its name and length above it; the axis begins at 0."""
    base = TOP + STACK_STEP * max(1, len(rows))
    x = Axis([row.length for row in rows], STACK_LEFT, WIDTH - RIGHT - 8)
    parts = [x_tick(x, tick, base) for tick in x.ticks()]
    for index, row in enumerate(rows):
        top = TOP + STACK_STEP * index
        parts.append(
            f'<text class="name" x="{STACK_LEFT}" y="{top + 13}">{escape(row.name)}'
            f'<tspan class="amount" dx="8">{row.length:.4g}</tspan></text>'
        )
        parts += _stack(row, x, top + 19)
    return svg([*parts, x_label(label, base + BOTTOM)], base + BOTTOM, f"stacked bars, {label}")


def _stack(row: Stack, x: Axis, top: float) -> list[str]:
    drawn, begin = list[str](), 0.0
    for style, length in row.parts:
        left, right = x.place(begin), x.place(begin + length)
        if length > 0:
            drawn.append(
                f'<rect class="{style}" x="{left:.2f}" y="{top}" width="{right - left:.2f}" height="{STACK_HEIGHT}"/>'
            )
        begin += length
    return drawn
