"""The scores as text: the grid of the reference page, one per repeat, and a page in Markdown around them."""

from collections.abc import Sequence

from loadtest.accuracy.answers import Settings
from loadtest.accuracy.score import OVERALL, Counts, Row
from loadtest.environment import Environment

HEADER = ("Model", "Dataset", "Metric", "Subset", "Num", "Score", "Cat.0")
_RIGHT = {4, 5}
_LABELS = {"wilson": "Wilson", "bootstrap": "bootstrap over problems"}


def grid(model: str, dataset: str, rows: Sequence[Row], repeat: int) -> str:
    """One repeat's scores in the reference's form."""
    cells = [
        (model, dataset, "Pass@1", row.subset, str(row.num), shown(row.repeats[repeat]), _category(row)) for row in rows
    ]
    widths = [max(len(line[column]) for line in (HEADER, *cells)) for column in range(len(HEADER))]
    rule = "+" + "+".join("-" * (width + 2) for width in widths) + "+"
    lines = [rule, _line(HEADER, widths), rule.replace("-", "=")]
    for line in cells:
        lines += [_line(line, widths), rule]
    return "\n".join(lines)


def _category(row: Row) -> str:
    return "-" if row.subset == OVERALL else "default"


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    padded = [
        cell.rjust(width) if column in _RIGHT else cell.ljust(width)
        for column, (cell, width) in enumerate(zip(cells, widths, strict=True))
    ]
    return f"| {' | '.join(padded)} |"


def shown(score: float) -> str:
    """As many digits as the reference has."""
    return f"{round(score, 4):g}"


def levels(rows: Sequence[Row]) -> str:
    """Means over the repeats with their intervals, as a Markdown table."""
    lines = ["| Subset | Num | Pass@1 | 95 % interval | of |", "|---|---:|---:|---|---|"]
    for row in rows:
        interval = f"{shown(row.low)} to {shown(row.high)}"
        lines.append(f"| {row.subset} | {row.num} | {shown(row.score)} | {interval} | {_LABELS[row.interval]} |")
    return "\n".join(lines)


def counted(counts: Counts) -> str:
    """What became of the answers, in a line."""
    return (
        f"{counts.answers} answers: {counts.right} right, {counts.wrong} wrong, {counts.unboxed} without a box, "
        f"{counts.unparsed} that the comparator cannot read, {counts.undecided} that it came to no end with; "
        f"{counts.cut} cut at max_tokens"
    )


def results_line(label: str, rows: Sequence[Row]) -> str:
    """Every repeat's overall score."""
    return f"- {label}: {', '.join(shown(score) for score in rows[-1].repeats)}."


def page(
    settings: Settings, environment: Environment, label: str, rows: Sequence[Row], counts: Counts, took: str
) -> str:
    """The whole of it, in the reference page's order."""
    grids = [
        f"# repeat {repeat + 1}, seed {settings.seed + repeat}\n{grid(settings.model, settings.data, rows, repeat)}"
        for repeat in range(len(rows[-1].repeats))
    ]
    versions = ", ".join(f"{name} {version}" for name, version in environment.versions.items())
    parts = [
        f"# {settings.model}\n\n## {settings.data}\n\n### Introduction",
        f"Server: {settings.url}. Date: {environment.date}. Client: Python {environment.python}, {versions}.",
        f"### Instructions\n\n```bash\n{environment.command}\n```",
        f"### Evaluation Results\n\n{results_line(label, rows)}",
        levels(rows),
        f"{counted(counts)}. {took}",
        "#### Details\n\n```\n" + "\n\n".join(grids) + "\n```",
    ]
    return "\n\n".join(parts) + "\n"
