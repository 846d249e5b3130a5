"""The report's page: text, tables and plots in one HTML file that needs nothing else, at any width."""

from collections.abc import Sequence
from html import escape

_STYLE = """
:root { color-scheme: light dark; --ink: #1c2024; --soft: #60646c; --paper: #fff; --rule: #e0e1e6;
  --c0: #0b68cb; --c1: #d9480f; --c2: #2b8a3e; --c3: #9c36b5; --c4: #b08900; --c5: #0c8599; --bad: #c92a2a; }
@media (prefers-color-scheme: dark) { :root { --ink: #edeef0; --soft: #b0b4ba; --paper: #18191b; --rule: #363a3f;
  --c0: #70b8ff; --c1: #ff9f6b; --c2: #71d083; --c3: #d19dff; --c4: #ffd60a; --c5: #4ccce6; --bad: #ff9592; } }
* { box-sizing: border-box }
body { margin: 0 auto; padding: 16px; max-width: 1180px; font: 16px/1.5 system-ui, sans-serif;
  color: var(--ink); background: var(--paper) }
h1 { font-size: 1.5em; margin: .2em 0 } h2 { font-size: 1.15em; margin: 1.6em 0 .4em }
figure { margin: 0; min-width: 0 } figcaption { font-weight: 600; margin-bottom: 4px }
.plots { display: grid; gap: 24px; grid-template-columns: repeat(auto-fit, minmax(min(100%, 460px), 1fr)) }
.plots figure:only-child { max-width: 640px }
svg { width: 100%; height: auto; display: block }
.scroll { overflow-x: auto } table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .9em }
th, td { padding: 4px 12px 4px 0; text-align: right; border-bottom: 1px solid var(--rule); white-space: nowrap }
th:first-child, td:first-child { text-align: left } .soft { color: var(--soft) }
.bad { color: var(--bad); font-weight: 600 }
pre { overflow-x: auto; font-size: .85em; color: var(--soft) }
.grid { stroke: var(--rule) } .tick { fill: var(--soft); font-size: 12px }
.label { fill: var(--soft); font-size: 13px; text-anchor: middle }
.line { fill: none; stroke-width: 1.8 } .dots { opacity: .6 }
.legend { margin: 4px 0 0; font-size: .85em } .legend span { margin-right: 16px; overflow-wrap: anywhere }
.legend i { display: inline-block; width: 12px; height: 12px; margin-right: 5px; border-radius: 3px }
rect.lag { fill: var(--c3) } rect.wait { fill: var(--c4) } rect.stream { fill: var(--c0) }
rect.failed { fill: none; stroke: var(--bad); stroke-width: 2 } rect.cancelled, rect.interrupted { stroke: var(--soft) }
.key i.lag { background: var(--c3) } .key i.wait { background: var(--c4) } .key i.stream { background: var(--c0) }
"""


def page(title: str, sections: Sequence[str]) -> str:
    """A whole document."""
    colours = "".join(
        f"polyline.s{index} {{ stroke: var(--c{index}) }} g.s{index} {{ fill: var(--c{index}) }} "
        f"i.s{index} {{ background: var(--c{index}) }}\n"
        for index in range(6)
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}{colours}</style></head>\n"
        f"<body><h1>{escape(title)}</h1>\n{''.join(sections)}</body></html>\n"
    )


def plots(figures: Sequence[tuple[str, str]]) -> str:
    """Captions and plots, side by side where there is room."""
    shown = [f"<figure><figcaption>{escape(caption)}</figcaption>{svg}</figure>" for caption, svg in figures]
    return f'<div class="plots">{"".join(shown)}</div>\n'


def table(rows: Sequence[Sequence[str]]) -> str:
    """The first row is the head."""
    head, *body = ["".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in row) for row, tag in _tagged(rows)]
    return f'<div class="scroll"><table><tr>{head}</tr>{"".join(f"<tr>{row}</tr>" for row in body)}</table></div>\n'


def _tagged(rows: Sequence[Sequence[str]]) -> list[tuple[Sequence[str], str]]:
    return [(row, "td" if index else "th") for index, row in enumerate(rows)]


def heading(text: str) -> str:
    """Of a section."""
    return f"<h2>{escape(text)}</h2>\n"


def paragraph(text: str, style: str = "") -> str:
    """Plain text."""
    return f'<p class="{style}">{escape(text)}</p>\n'


def listing(text: str) -> str:
    """As it is, in a fixed pitch."""
    return f"<pre>{escape(text)}</pre>\n"


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """The same table for a text."""
    head, *body = [f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in rows]
    return "\n".join([head, "|" + "---|" + "---:|" * (len(rows[0]) - 1), *body]) + "\n"
