"""Tables of the report: as aligned text, and as Markdown."""

from collections.abc import Sequence
from typing import NamedTuple

from rich.console import Console


class Sheet(NamedTuple):
    """A table with a title and a text that says how to read it."""

    title: str
    note: str
    columns: tuple[str, ...]
    """Heads of the columns; a line break in one saves width in text."""
    rows: Sequence[tuple[str, ...]]
    num_labels: int
    """Leading columns that hold words; the others hold numbers."""


def print_sheet(sheet: Sheet, console: Console) -> None:
    """The table under its title and note; never folded, so that a wide one can be scrolled or piped."""
    console.print(f"\n{sheet.title}", style="bold")
    console.print(f"{sheet.note}\n")
    for line in to_lines(sheet):
        console.print(line, overflow="ignore", no_wrap=True, crop=False)


def to_lines(sheet: Sheet) -> list[str]:
    """The table's lines: words to the left, numbers to the right, a rule under the heads."""
    heads = [column.split("\n") for column in sheet.columns]
    height = max(map(len, heads))
    stacked = [[""] * (height - len(head)) + head for head in heads]
    body: list[Sequence[str]] = [*zip(*stacked, strict=True), *sheet.rows]
    widths = [max(len(row[i]) for row in body) for i in range(len(heads))]
    lines = [
        "  ".join(
            cell.ljust(width) if index < sheet.num_labels else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in body
    ]
    rule = "─" * (sum(widths) + 2 * (len(widths) - 1))
    return [*lines[:height], rule, *lines[height:]]


def to_markdown(sheets: Sequence[Sheet]) -> str:
    """The tables as Markdown sections of level 3."""
    return "\n".join(_markdown(sheet) for sheet in sheets)


def _markdown(sheet: Sheet) -> str:
    rule = ["---" if index < sheet.num_labels else "---:" for index in range(len(sheet.columns))]
    heads = [column.replace("\n", " ") for column in sheet.columns]
    lines = [f"| {' | '.join(row)} |" for row in (heads, rule, *sheet.rows)]
    return "\n".join((f"### {sheet.title}", "", sheet.note, "", *lines, ""))
