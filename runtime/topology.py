"""Topologies: which slices there are, what role each plays and how many devices it has.

Grammar: `ROLE=COUNT[xTP]` joined by commas; roles `prefill`, `decode`, `mixed`. `prefill=2x1,decode=1x2` is two
prefill slices of one device and one decode slice of two. COUNT and TP go up to 4096.
"""

import re
from typing import Literal

import msgspec

from runtime.errors import UsageError

Role = Literal["prefill", "decode", "mixed"]
ROLES: tuple[Role, ...] = ("prefill", "decode", "mixed")
MAX_COUNT = 4096
"""Slices of one role, and devices of one slice."""

MAX_DEVICES = 1 << 16
"""Devices of all slices together."""

_MAX_DIGITS = 9
_MAX_SHOWN = 80
_PART = re.compile(r"(?P<role>[a-z]+)=(?P<count>[0-9]+)(?:x(?P<tp>[0-9]+))?")


class Slice(msgspec.Struct, frozen=True):
    """One slice; `devices` are indices into the process's device list."""

    name: str
    role: Role
    devices: tuple[int, ...]


class Topology(msgspec.Struct, frozen=True):
    """All slices, prefill first, then decode, then mixed, on consecutive devices."""

    slices: tuple[Slice, ...]

    @property
    def num_devices(self) -> int:
        """Devices that all slices need together."""
        return sum(len(part.devices) for part in self.slices)

    def named(self, role: Role) -> tuple[Slice, ...]:
        """The slices of one role."""
        return tuple(part for part in self.slices if part.role == role)

    def __str__(self) -> str:
        shapes = []
        for role in ROLES:
            parts = self.named(role)
            if parts:
                shapes.append(f"{role}={len(parts)}x{len(parts[0].devices)}")
        return ",".join(shapes)


def parse_topology(text: str, default_tp: int = 1) -> Topology:
    """Parses the grammar above. Raises UsageError naming the text and what is allowed."""
    counts: dict[Role, tuple[int, int]] = {}
    for part in text.split(","):
        match = _PART.fullmatch(part.strip())
        if match is None or match["role"] not in ROLES:
            raise UsageError(_complaint(text, f"{_shown(part.strip())} is not ROLE=COUNT[xTP]"))
        role: Role = next(name for name in ROLES if name == match["role"])
        if role in counts:
            raise UsageError(_complaint(text, f"{role} is given twice"))
        count, tp = _number(match["count"]), default_tp if match["tp"] is None else _number(match["tp"])
        if not (1 <= count <= MAX_COUNT and 1 <= tp <= MAX_COUNT):
            shown = _shown(part.strip())
            raise UsageError(_complaint(text, f"{shown} has a count or TP that is not from 1 to {MAX_COUNT}"))
        counts[role] = (count, tp)
    if "mixed" in counts and len(counts) > 1:
        raise UsageError(_complaint(text, "mixed goes alone"))
    if "mixed" not in counts and len(counts) < 2:
        raise UsageError(_complaint(text, "prefill and decode go together"))
    if sum(count * tp for count, tp in counts.values()) > MAX_DEVICES:
        raise UsageError(_complaint(text, f"it needs more than {MAX_DEVICES} devices"))
    return _place(counts)


def default_topology(num_devices: int, tp: int = 1) -> Topology:
    """`prefill=1,decode=1` when there are devices for it, else `mixed=1`, each of `tp` devices."""
    text = f"prefill=1x{tp},decode=1x{tp}" if num_devices >= 2 * tp else f"mixed=1x{tp}"
    return parse_topology(text)


def _place(counts: dict[Role, tuple[int, int]]) -> Topology:
    slices: list[Slice] = []
    first = 0
    for role in ROLES:
        count, tp = counts.get(role, (0, 0))
        for index in range(count):
            slices.append(Slice(f"{role}.{index}", role, tuple(range(first, first + tp))))
            first += tp
    return Topology(tuple(slices))


def _number(digits: str) -> int:
    """The number, or 0, which is never allowed, for more digits than any allowed one has."""
    return int(digits) if len(digits) <= _MAX_DIGITS else 0


def _complaint(text: str, reason: str) -> str:
    return (
        f"--topology {_shown(text)}: {reason}; allowed: prefill=P[xTP],decode=D[xTP] or mixed=N[xTP] "
        f"with P, D, N, TP from 1 to {MAX_COUNT}"
    )


def _shown(text: str) -> str:
    return repr(text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}...")
