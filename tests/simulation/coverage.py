"""Which kinds of fault have struck which messages, as a table, and which cells of it cannot be filled."""

from collections import Counter
from collections.abc import Iterable

import msgspec

from tests.simulation.faults import KINDS, Kind, message_types
from tests.simulation.injector import Struck


class Excuse(msgspec.Struct, frozen=True):
    """Why these kinds of fault never strike these messages."""

    messages: tuple[str, ...]
    kinds: tuple[Kind, ...]
    reason: str


EXCUSES = (
    Excuse(
        (
            "Submit",
            "Disconnect",
            "Drain",
            "GetStatus",
            "AskDrain",
            "Delta",
            "Completed",
            "Failed",
            "Drained",
            "Status",
            "DrainAnswer",
        ),
        KINDS,
        "a client is the HTTP edge, which is one process with the gateway: they die together",
    ),
    Excuse(
        ("ForgetPrefixes", "PrefixesForgotten"),
        KINDS,
        "an operator's question: where the answer does not come he is told so, and no request depends on it",
    ),
    Excuse(
        ("Admit", "AbortGroup", "Refused", "SchedulerReport", "DrainWorker", "ResumeWorker"),
        ("hang", "slow"),
        "goes between gateway and scheduler, which have no slice",
    ),
)


class Coverage:
    """Counts of what has struck, by kind and message type."""

    def __init__(self, struck: Iterable[Struck] = ()) -> None:
        self.counts: Counter[tuple[str, str]] = Counter()
        self.add(struck)

    def add(self, struck: Iterable[Struck]) -> None:
        """Counts the faults of a run."""
        self.counts.update((entry.fault.kind, entry.boundary.message) for entry in struck)

    def merge(self, other: "Coverage") -> None:
        """Counts what another one has counted."""
        self.counts.update(other.counts)

    def empty_cells(self, kinds: Iterable[Kind] = KINDS) -> list[tuple[str, str]]:
        """Cells that could be filled and are not."""
        return [
            (kind, message)
            for message in _messages()
            for kind in kinds
            if not self.counts[kind, message] and excuse(kind, message) is None
        ]

    def misplaced_excuses(self) -> list[tuple[str, str]]:
        """Cells that are filled, although a reason says that they cannot be."""
        return sorted(cell for cell in self.counts if excuse(*cell) is not None)

    def table(self, kinds: tuple[Kind, ...] = KINDS) -> str:
        """Rows are message types; a dash marks a cell that cannot be filled."""
        rows = {message: [self._cell(kind, message) for kind in kinds] for message in _messages()}
        return "\n".join(_row(name, cells) for name, cells in {"": kinds, **rows}.items())

    def _cell(self, kind: str, message: str) -> str:
        count = self.counts[kind, message]
        return str(count) if count or excuse(kind, message) is None else "-"


def excuse(kind: str, message: str) -> str | None:
    """Why this kind of fault cannot strike this message, if so."""
    reasons = (entry.reason for entry in EXCUSES if message in entry.messages and kind in entry.kinds)
    return next(reasons, None)


def excuses_text() -> str:
    """The reasons behind the dashes."""
    return "\n".join(f"- {', '.join(e.messages)} x {', '.join(e.kinds)}: {e.reason}" for e in EXCUSES)


def _row(name: str, cells: Iterable[str]) -> str:
    return f"{name:<18}" + "".join(f"{cell:>10}" for cell in cells)


def _messages() -> list[str]:
    return sorted(kind.__name__ for kind in message_types())
