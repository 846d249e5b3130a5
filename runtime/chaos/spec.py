"""The language in which failures are ordered: `decode.0:crash@step=50,transfer:drop=0.01`. Pure; no I/O.

    WORKER:crash@step=N | crash@chunk=N    its N-th step (or the step with its N-th prompt chunk) raises
    WORKER:hang@step=N | hang@step=N/5s    that step does not return: for good, or for so long; likewise at a chunk
    WORKER:oom@step=N                      the device runs out of memory in that step
    WORKER:slow=FACTOR                     its steps take FACTOR times as long
    transfer:drop=P | fail=P | corrupt=P   of the moved chunks, a share of P vanishes, fails or arrives changed
    transfer:delay=50ms                    each move takes that much longer

Steps and chunks are counted from the moment at which the spec is given.
"""

import re
from math import isfinite
from typing import Literal, NoReturn

import msgspec

from runtime.topology import Topology

Kind = Literal["crash", "hang", "oom", "slow", "drop", "fail", "corrupt", "delay"]
Unit = Literal["step", "chunk"]

TRANSFER = "transfer"
MAX_DURATION_S = 3600.0
MAX_FACTOR = 1000.0

_MAX_SHOWN = 80
_GRAMMAR = (
    "WORKER:crash@step=N, hang@step=N/5s, oom@step=N or slow=FACTOR, transfer:drop=P, fail=P, corrupt=P or delay=T"
)
_COUNT = re.compile(r"[1-9][0-9]{0,8}")
_DURATION = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ms|s)")
_MOMENTS: dict[str, tuple[Unit, ...]] = {"crash": ("step", "chunk"), "hang": ("step", "chunk"), "oom": ("step",)}
_SHARES = ("drop", "fail", "corrupt")


class SpecError(ValueError):
    """A part of the spec is not understood or has no target; one line that names it and says what is allowed."""


class Strike(msgspec.Struct, frozen=True, kw_only=True):
    """One part of a spec, which `text` repeats. `unit` and `count` say when a worker is struck.

    `share` is that of the chunks, `factor` by how much steps are slower, and `duration_s` how long it hangs (None:
    until the chaos ends) or a move is delayed.
    """

    text: str
    target: str
    kind: Kind
    unit: Unit = "step"
    count: int = 0
    share: float = 0.0
    factor: float = 1.0
    duration_s: float | None = None


def parse_chaos(spec: str) -> tuple[Strike, ...]:
    """The strikes of a spec, in order. Raises SpecError."""
    return tuple(_parse_part(part.strip()) for part in spec.split(","))


def check_targets(strikes: tuple[Strike, ...], topology: Topology) -> None:
    """Raises SpecError for a strike at something that the topology does not have."""
    roles = {part.name: part.role for part in topology.slices}
    has_transfer = not topology.named("mixed")
    for strike in strikes:
        if strike.target == TRANSFER:
            if not has_transfer:
                raise SpecError(f"{strike.text!r}: {topology} moves no chunks; allowed: {', '.join(roles)}")
        elif strike.target not in roles:
            allowed = [*roles, TRANSFER] if has_transfer else list(roles)
            raise SpecError(f"{strike.text!r}: no worker {strike.target!r}; allowed: {', '.join(allowed)}")
        elif strike.unit == "chunk" and roles[strike.target] == "decode":
            raise SpecError(f"{strike.text!r}: a decode worker computes no prompt chunks; allowed: @step=N")


def _parse_part(part: str) -> Strike:
    target, colon, action = part.partition(":")
    if not colon or not target:
        _refuse(part, _GRAMMAR)
    return _at_transfer(part, action) if target == TRANSFER else _at_worker(part, target, action)


def _at_transfer(part: str, action: str) -> Strike:
    kind, _, value = action.partition("=")
    if kind == "delay":
        return Strike(text=part, target=TRANSFER, kind="delay", duration_s=_duration_s(part, value))
    for name in _SHARES:
        if kind == name:
            share = _number(part, value, 1.0, "a share above 0 and at most 1")
            return Strike(text=part, target=TRANSFER, kind=name, share=share)  # type: ignore[arg-type]
    _refuse(part, "drop=P, fail=P, corrupt=P or delay=50ms after transfer:")


def _at_worker(part: str, target: str, action: str) -> Strike:
    if action.startswith("slow="):
        factor = _number(part, action.removeprefix("slow="), MAX_FACTOR, f"a factor above 1 and at most {MAX_FACTOR:g}")
        if factor <= 1.0:
            _refuse(part, f"a factor above 1 and at most {MAX_FACTOR:g}")
        return Strike(text=part, target=target, kind="slow", factor=factor)
    kind, _, moment = action.partition("@")
    if kind not in _MOMENTS:
        _refuse(part, "crash@step=N, hang@step=N/5s, oom@step=N or slow=FACTOR after a worker's name")
    unit, _, when = moment.partition("=")
    units = _MOMENTS[kind]
    if unit not in units:
        _refuse(part, " or ".join(f"{kind}@{name}=N" for name in units))
    count, slash, duration = when.partition("/")
    if not _COUNT.fullmatch(count) or (slash and kind != "hang"):
        _refuse(part, f"{kind}@{unit}=N with a whole number N from 1{', and /5s behind it' if kind == 'hang' else ''}")
    return Strike(
        text=part,
        target=target,
        kind=kind,  # type: ignore[arg-type]
        unit=unit,
        count=int(count),
        duration_s=_duration_s(part, duration) if slash else None,
    )


def _number(part: str, value: str, high: float, allowed: str) -> float:
    try:
        number = float(value)
    except ValueError:
        _refuse(part, allowed)
    if not isfinite(number) or not 0.0 < number <= high:
        _refuse(part, allowed)
    return number


def _duration_s(part: str, value: str) -> float:
    match = _DURATION.fullmatch(value)
    duration_s = float(match[1]) / (1000.0 if match[2] == "ms" else 1.0) if match is not None else 0.0
    if not 0.0 < duration_s <= MAX_DURATION_S:
        _refuse(part, f"a time like 50ms or 5s, at most {MAX_DURATION_S:g}s")
    return duration_s


def _refuse(part: str, allowed: str) -> NoReturn:
    shown = repr(part) if len(part) <= _MAX_SHOWN else f"{part[:_MAX_SHOWN]!r}..."
    raise SpecError(f"{shown}: allowed: {allowed}")
