"""The report's page: text, tables and plots in one HTML file that needs nothing else, at any width."""

from collections.abc import Mapping, Sequence
from html import escape

_STYLE = """
:root { color-scheme: light dark; --ink: #1c2024; --soft: #60646c; --paper: #fff; --rule: #e0e1e6;
  --c0: #0b68cb; --c1: #d9480f; --c2: #2b8a3e; --c3: #9c36b5; --c4: #b08900; --c5: #0c8599; --bad: #c92a2a;
  --faint: #a9adb5; }
@media (prefers-color-scheme: dark) { :root { --ink: #edeef0; --soft: #b0b4ba; --paper: #18191b; --rule: #363a3f;
  --c0: #70b8ff; --c1: #ff9f6b; --c2: #71d083; --c3: #d19dff; --c4: #ffd60a; --c5: #4ccce6; --bad: #ff9592;
  --faint: #6b7078; } }
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
th { white-space: normal; vertical-align: bottom } .plots + .scroll { margin-top: 16px }
th:first-child, td:first-child { text-align: left } .soft { color: var(--soft) }
.bad { color: var(--bad); font-weight: 600 }
pre { overflow-x: auto; font-size: .85em; color: var(--soft) }
.grid { stroke: var(--rule) } .tick { fill: var(--soft); font-size: 12px }
.label { fill: var(--soft); font-size: 13px; text-anchor: middle }
.line { fill: none; stroke-width: 1.8 } .dots { opacity: .6 }
.legend { margin: 4px 0 0; font-size: .85em } .legend span { display: inline-block; margin-right: 16px }
.legend i { display: inline-block; width: 12px; height: 12px; margin-right: 5px; border-radius: 3px }
.legend i.dashed { -webkit-mask: repeating-linear-gradient(90deg, #000 0 3px, transparent 3px 5px);
  mask: repeating-linear-gradient(90deg, #000 0 3px, transparent 3px 5px); border-radius: 0 }
.errors { fill: none; stroke-width: 1.6 } .name { fill: var(--ink); font-size: 13px } .amount { fill: var(--soft) }
rect.failed { fill: none; stroke: var(--bad); stroke-width: 2 } i.failed { background: var(--bad) }
rect.cancelled, rect.interrupted { stroke: var(--ink); stroke-width: 2 }
i.cancelled, i.interrupted { background: var(--ink) }
.banner { border: 2px solid var(--bad); border-radius: 6px; padding: 8px 12px; color: var(--bad); font-weight: 700;
  overflow-wrap: anywhere }
.said { font-size: 1.05em; font-weight: 600 } h3 { font-size: 1em; margin: 1.6em 0 .4em; overflow-wrap: anywhere }
h1, h2, p, .legend span { overflow-wrap: anywhere }
@media (max-width: 560px) { .tick { font-size: 15px } .name, .label { font-size: 17px } body { padding: 12px } }
"""

_COLOURS = {
    **{f"s{index}": f"c{index}" for index in range(6)},
    "reference": "soft",
    "lag": "c3",
    "wait": "c4",
    "stream": "c0",
    "queue": "c4",
    "prefill": "c1",
    "transfer": "c5",
    "handoff": "c2",
    "decode": "c0",
    "rest": "faint",
    "untold": "rule",
}
"""The colour of every class that a drawing uses."""


def page(title: str, sections: Sequence[str]) -> str:
    """A whole document."""
    colours = "".join(
        f"polyline.{style}, path.{style} {{ stroke: var(--{name}) }} g.{style}, rect.{style} {{ fill: var(--{name}) }} "
        f"i.{style} {{ background: var(--{name}) }}\n"
        for style, name in _COLOURS.items()
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


def subheading(text: str) -> str:
    """Of a part of a section."""
    return f"<h3>{escape(text)}</h3>\n"


def banner(text: str) -> str:
    """What nobody may overlook."""
    return f'<p class="banner">{escape(text)}</p>\n'


def keys(meanings: Mapping[str, str]) -> str:
    """A legend: what each class of a drawing stands for."""
    shown = [f'<span><i class="{style}"></i>{escape(meaning)}</span>' for style, meaning in meanings.items()]
    return f'<p class="legend">{"".join(shown)}</p>'


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
