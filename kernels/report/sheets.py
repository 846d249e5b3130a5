"""Tables of the report: on a terminal, as plain text, and as Markdown."""

from collections.abc import Sequence
from typing import NamedTuple

from rich import box
from rich.console import Console
from rich.table import Table


class Sheet(NamedTuple):
    """A table with a title and a line that says how to read it."""

    title: str
    note: str
    columns: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    num_labels: int
    """Leading columns that hold words; the others hold numbers."""


def print_sheet(sheet: Sheet, console: Console) -> None:
    """The table under its title and note."""
    console.print(f"\n{sheet.title}", style="bold")
    console.print(sheet.note)
    table = Table(box=box.SIMPLE, pad_edge=False, show_edge=False)
    for index, column in enumerate(sheet.columns):
        table.add_column(column, justify="left" if index < sheet.num_labels else "right", overflow="fold")
    for row in sheet.rows:
        table.add_row(*row)
    console.print(table)


def to_markdown(sheets: Sequence[Sheet]) -> str:
    """The tables as Markdown sections of level 3."""
    return "\n".join(_markdown(sheet) for sheet in sheets)


def _markdown(sheet: Sheet) -> str:
    rule = ["---" if index < sheet.num_labels else "---:" for index in range(len(sheet.columns))]
    lines = [_line(row) for row in (sheet.columns, rule, *sheet.rows)]
    return "\n".join((f"### {sheet.title}", "", sheet.note, "", *lines, ""))


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
