"""Step-time tables: how long each device operation of one slice takes, read from a JSON file.

The engine of an emulated slice asks a table how long its next operation lasts. A table is measured
(`runtime bench --step-times`) or estimated; it says which, and of what. docs/emulation.md describes the format. Apart
from `load_table`, pure functions.
"""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import msgspec

from runtime.buckets import fit
from runtime.engine import Step
from runtime.errors import UsageError
from runtime.settings import Platform

FORMAT: Literal["runtime-step-times/1"] = "runtime-step-times/1"


class Linear(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A time that grows with the tokens handled."""

    fixed_s: float
    per_token_s: float

    def of(self, num_tokens: int) -> float:
        """Seconds for that many tokens."""
        return self.fixed_s + num_tokens * self.per_token_s


class PrefillTimes(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`step_s[i][j]`: a step of the bucket `tokens[i]`, all of one prompt, with `starts[j]` tokens before them."""

    tokens: tuple[int, ...]
    starts: tuple[int, ...]
    step_s: tuple[tuple[float, ...], ...]

    def of(self, num_tokens: int, start: float) -> float:
        """Seconds; tokens are rounded up to a bucket, starts are interpolated. Raises ValueError beyond the buckets."""
        row = self.step_s[self.tokens.index(fit(self.tokens, num_tokens))]
        return interpolated(self.starts, row, start)


class DecodeTimes(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`step_s[i][j]`: a step of the bucket `rows[i]`, each row with `contexts[j]` tokens before the one it feeds."""

    rows: tuple[int, ...]
    contexts: tuple[int, ...]
    step_s: tuple[tuple[float, ...], ...]

    def of(self, num_rows: int, context: float) -> float:
        """Seconds; rows are rounded up to a bucket, contexts are interpolated. Raises ValueError beyond the buckets."""
        row = self.step_s[self.rows.index(fit(self.rows, num_rows))]
        return interpolated(self.contexts, row, context)


class MixedTimes(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`step_s[i][j]`: a step of `tokens[i]` prompt tokens after `start` and of `rows[j]` rows with `context` tokens."""

    start: int
    context: int
    tokens: tuple[int, ...]
    rows: tuple[int, ...]
    step_s: tuple[tuple[float, ...], ...]

    def of(self, num_tokens: int, num_rows: int) -> float:
        """Seconds, at the measured start and context. Raises ValueError beyond the buckets."""
        row = self.step_s[self.tokens.index(fit(self.tokens, num_tokens))]
        return row[self.rows.index(fit(self.rows, num_rows))]


class StepShape(msgspec.Struct, frozen=True, kw_only=True):
    """What a step's time depends on: `tokens` of prompts, as if one had them all after `start` tokens, and decode
    `rows` of mean `context`, the tokens before the one that a row feeds.
    """

    tokens: int = 0
    start: float = 0.0
    rows: int = 0
    context: float = 0.0


class StepTable(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Times of one slice with one model. `pool_tokens` is how many tokens of KV the slice holds.

    `how` says in words where the times are from: the command and machine that measured, or what estimated them.
    """

    format: Literal["runtime-step-times/1"] = FORMAT
    model: str
    dtype: str
    platform: Platform
    source: Literal["measured", "estimated"]
    how: str
    max_context_tokens: int
    kv_bytes_per_token: int
    pool_tokens: int
    prefill: PrefillTimes
    decode: DecodeTimes
    mixed: MixedTimes
    gather: Linear
    insert: Linear
    transfer: Linear

    @property
    def label(self) -> str:
        """One line for people and programs that must not take this for a real engine."""
        return f"emulated: {self.model} {self.dtype}, {self.source}: {self.how}"

    def step_s(self, shape: StepShape) -> float:
        """Seconds of one step. Raises ValueError for a step beyond the table's largest sizes.

        Prefill and decode together start from the measured mixed step and add what each of them takes more, or less,
        alone than at the start and context at which mixed steps were measured.
        """
        if not shape.rows:
            return self.prefill.of(shape.tokens, shape.start)
        if not shape.tokens:
            return self.decode.of(shape.rows, shape.context)
        prefill, decode, mixed = self.prefill, self.decode, self.mixed
        more_s = prefill.of(shape.tokens, shape.start) - prefill.of(shape.tokens, mixed.start)
        more_s += decode.of(shape.rows, shape.context) - decode.of(shape.rows, mixed.context)
        return max(0.0, mixed.of(shape.tokens, shape.rows) + more_s)

    def stretched(self, times: float) -> "StepTable":
        """The same slice, everything lasting `times` as long; the label says so."""
        if times == 1:
            return self
        grids = {name: _stretched_grid(getattr(self, name), times) for name in ("prefill", "decode", "mixed")}
        lines = {name: _stretched_line(getattr(self, name), times) for name in ("gather", "insert", "transfer")}
        return msgspec.structs.replace(self, how=f"{self.how}; times x{times:g}", **grids, **lines)


def shape_of(step: Step, lengths: Mapping[int, int]) -> StepShape:
    """The shape of a step; `lengths` are the tokens that each row holds.

    Segments t_i at s_i attend to sum t_i * (s_i + t_i / 2) tokens; the start is that of a single segment that attends
    to as many, and not less than 0.
    """
    tokens = sum(len(segment.tokens) for segment in step.prefill)
    work = sum(len(part.tokens) * (part.start + len(part.tokens) / 2) for part in step.prefill)
    rows = len(step.decode)
    return StepShape(
        tokens=tokens,
        start=max(0.0, work / tokens - tokens / 2) if tokens else 0.0,
        rows=rows,
        context=sum(lengths[row] for row in step.decode) / rows if rows else 0.0,
    )


def interpolated(axis: Sequence[int], values: Sequence[float], at: float) -> float:
    """Linear between the points of an ascending axis.

    Below the first point its value holds; beyond the last, the line through the last two goes on, unless it falls.
    """
    if at <= axis[0] or len(axis) == 1:
        return values[0]
    right = min(bisect_right(axis, at), len(axis) - 1)
    left = right - 1
    slope = (values[right] - values[left]) / (axis[right] - axis[left])
    if at > axis[-1]:
        return values[-1] + max(0.0, slope) * (at - axis[-1])
    return values[left] + slope * (at - axis[left])


def load_table(path: Path) -> StepTable:
    """Reads and checks a table. Raises UsageError, one line that names the file and what is wrong in it."""
    try:
        table = msgspec.json.decode(path.read_bytes(), type=StepTable)
    except OSError as error:
        raise _refusal(path, f"cannot be read ({error.strerror or error})") from None
    except msgspec.DecodeError as error:
        raise _refusal(path, " ".join(str(error).split())) from None
    for complaint in complaints(table):
        raise _refusal(path, complaint)
    return table


def complaints(table: StepTable) -> list[str]:
    """What makes the numbers no times of steps, one line each."""
    found = [
        f"{name} is {value}; allowed: at least 1"
        for name in ("max_context_tokens", "kv_bytes_per_token", "pool_tokens")
        if (value := getattr(table, name)) < 1
    ]
    found += _grid_complaints("prefill", {"tokens": 1, "starts": 0}, table.prefill)
    found += _grid_complaints("decode", {"rows": 1, "contexts": 0}, table.decode)
    found += _grid_complaints("mixed", {"tokens": 1, "rows": 1}, table.mixed)
    found += [
        f"mixed.{name} is {value}; allowed: at least 0"
        for name, value in (("start", table.mixed.start), ("context", table.mixed.context))
        if value < 0
    ]
    for name in ("gather", "insert", "transfer"):
        for field, value in msgspec.structs.asdict(getattr(table, name)).items():
            if value < 0:
                found.append(f"{name}.{field} is {value}; allowed: at least 0 seconds")
    return found


def _grid_complaints(name: str, axes: Mapping[str, int], grid: PrefillTimes | DecodeTimes | MixedTimes) -> list[str]:
    """`axes` are the names of rows and columns with the least value of each."""
    found = []
    for axis, least in axes.items():
        values = getattr(grid, axis)
        if not values or values[0] < least or any(b <= a for a, b in zip(values, values[1:], strict=False)):
            found.append(f"{name}.{axis} is {list(values)}; allowed: ascending whole numbers from {least} on")
    num_rows, num_columns = (len(getattr(grid, axis)) for axis in axes)
    if [len(row) for row in grid.step_s] != [num_columns] * num_rows:
        shown = [len(row) for row in grid.step_s]
        across, down = axes
        found.append(
            f"{name}.step_s has rows of {shown} values; allowed: {num_rows} rows, one for each of {across}, "
            f"of {num_columns} values, one for each of {down}"
        )
    found += [
        f"{name}.step_s has {value}; allowed: at least 0 seconds" for row in grid.step_s for value in row if value < 0
    ]
    return found


def _refusal(path: Path, reason: str) -> UsageError:
    return UsageError(f"--engine 'emulated:{path}': {reason}; allowed: a step-time table (docs/emulation.md)")


def _stretched_grid(grid: PrefillTimes | DecodeTimes | MixedTimes, times: float) -> object:
    return msgspec.structs.replace(grid, step_s=tuple(tuple(value * times for value in row) for row in grid.step_s))


def _stretched_line(line: Linear, times: float) -> Linear:
    return Linear(fixed_s=line.fixed_s * times, per_token_s=line.per_token_s * times)
