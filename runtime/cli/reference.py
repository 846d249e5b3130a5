"""The tables of `docs/configuration.md`, from the table of flags; `python -m runtime.cli.reference` prints them."""

import sys

from runtime.cli.flag import Flag
from runtime.cli.flag_table import FLAGS, GROUPS


def reference() -> str:
    """One Markdown table per group."""
    return "\n".join(_table(group) for group in GROUPS)


def _table(group: str) -> str:
    rows = [_row(flag) for flag in FLAGS if flag.group == group]
    head = ["| flag | allowed | default | effect |", "|---|---|---|---|"]
    return "\n".join([f"### {group.capitalize()}", "", *head, *rows, ""])


def _row(flag: Flag) -> str:
    value = f" {flag.metavar}" if flag.metavar else ""
    names = ", ".join(f"`{name}{value}`" for name in flag.names)
    allowed = "" if flag.is_switch else flag.value.allowed
    cells = (names, allowed, flag.default_text, flag.effect)
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


if __name__ == "__main__":
    sys.stdout.write(reference())
