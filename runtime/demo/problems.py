"""The demo model's problems: five levels, disjoint training and test splits, and the test file.

A problem belongs to the split that a hash of its canonical key says, so that no problem, also not with its parts
in another order, is in both. Training problems additionally never *work out* a test problem as one of their steps.
Pure Python and deterministic. ``python -m runtime.demo.problems`` writes ``test.jsonl`` anew.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from runtime.demo.arithmetic import Expression, Operation, Working, evaluate, key, work_out
from runtime.demo.phrasing import answer_text, ask

Split = Literal["train", "test"]

LEVELS = (1, 2, 3, 4, 5)
TEST_PERCENT = 10
TEST_PROBLEMS_PER_LEVEL = 100
TEST_SEED = 3
TEST_FILE = Path(__file__).with_name("test.jsonl")

_SUBJECTS = {"+": "Addition", "-": "Subtraction", "*": "Multiplication", "/": "Division"}


@dataclass(frozen=True)
class Problem:
    """An expression with its level, subject and working."""

    expression: Operation
    level: int
    subject: str
    working: Working

    @property
    def answer(self) -> str:
        """The integer that belongs inside the box."""
        return str(self.working.value)


def split_of(expression: Expression) -> Split:
    """The split a problem belongs to, from a hash of its canonical key."""
    digest = hashlib.sha256(key(expression).encode()).digest()
    return "test" if int.from_bytes(digest[:8], "big") % 100 < TEST_PERCENT else "train"


def make_problem(expression: Operation, level: int) -> Problem:
    """Work out an expression; its value is checked against Python's own arithmetic."""
    working = work_out(expression)
    assert working.value == evaluate(expression), (expression, working)
    is_single = isinstance(expression.left, int) and isinstance(expression.right, int)
    subject = _SUBJECTS[expression.operator] if is_single else "Mixed operations"
    return Problem(expression, level, subject, working)


def draw(rng: random.Random, level: int, split: Split) -> Problem:
    """Draw a problem of a level that belongs to a split."""
    while True:
        expression = _DRAWERS[level](rng)
        if expression is None or split_of(expression) != split:
            continue
        problem = make_problem(expression, level)
        if split == "test" or all(split_of(step) == "train" for step in problem.working.operations):
            return problem


def _swap(rng: random.Random, left: int, right: int) -> tuple[int, int]:
    return (left, right) if rng.random() < 0.5 else (right, left)


def _difference(rng: random.Random, left: int, right: int, negative_share: float = 0.15) -> Operation:
    """``left - right`` in the order that is not negative, or now and then the other one."""
    high, low = max(left, right), min(left, right)
    return Operation("-", low, high) if rng.random() < negative_share else Operation("-", high, low)


def _two_digits(rng: random.Random) -> int:
    return rng.randint(10, 99)


def _three_digits(rng: random.Random) -> int:
    """Three digits, more often than by chance with zeros in the middle or at the end, over which borrowing is hard."""
    return rng.randint(1, 9) * 100 + rng.choices((rng.randint(0, 99), rng.randint(0, 9), 0), (17, 2, 1))[0]


def _level_1(rng: random.Random) -> Operation | None:
    """One-digit +, - and *, and two-digit numbers plus or minus one digit."""
    kind = rng.choices(("+", "-", "*", "+2", "-2"), (2, 2, 4, 3, 3))[0]
    a, b, long = rng.randint(0, 9), rng.randint(0, 9), _two_digits(rng)
    match kind:
        case "+":
            return Operation("+", a, b)
        case "-":
            return _difference(rng, a, b)
        case "*":
            return Operation("*", a, b)
        case "+2":
            return Operation("+", *_swap(rng, long, b))
        case _:
            return _difference(rng, long, b, 0.3)


def _level_2(rng: random.Random) -> Operation | None:
    """Two-digit + and -."""
    a, b = _two_digits(rng), _two_digits(rng)
    return Operation("+", a, b) if rng.random() < 0.5 else _difference(rng, a, b, 0.3)


def _level_3(rng: random.Random) -> Operation | None:
    """Three-digit + and - (the other number up to three digits, no negative result), two digits times one."""
    kind = rng.choice("+-*")
    if kind == "*":
        return Operation("*", *_swap(rng, _two_digits(rng), rng.randint(2, 9)))
    long = _three_digits(rng)
    other = rng.randint(*rng.choices(((100, 999), (10, 99), (1, 9)), (6, 1, 2))[0])
    return Operation("+", *_swap(rng, long, other)) if kind == "+" else _difference(rng, long, other, 0.0)


def _level_4(rng: random.Random) -> Operation | None:
    """Two digits times two digits, and exact division by a digit with a result of one or two digits."""
    if rng.random() < 0.6:
        return Operation("*", _two_digits(rng), _two_digits(rng))
    divisor = rng.randint(2, 9)
    quotient = _two_digits(rng) if rng.random() < 0.8 else rng.randint(1, 9)
    return Operation("/", quotient * divisor, divisor)


def _level_5(rng: random.Random) -> Operation | None:
    """Two operations, with and without parentheses; no step is negative and every division is exact."""
    a, b, long = (rng.randint(1, 9) if rng.random() < 0.35 else rng.randint(10, 99) for _ in range(3))
    digit = rng.randint(2, 9)
    high, low = max(a, b), min(a, b)
    candidates: tuple[Operation, ...] = (
        Operation("*", Operation("+", a, b), digit),
        Operation("*", Operation("-", high, low), digit),
        Operation("*", digit, Operation("+", a, b)),
        Operation("*", digit, Operation("-", high, low)),
        Operation("+", a, Operation("*", long, digit)),
        Operation("+", Operation("*", digit, long), a),
        Operation("-", Operation("*", long, digit), a),
        Operation("-", rng.randint(10, 999), Operation("*", digit, rng.randint(2, 99))),
        Operation("+", Operation("+", a, b), long),
        Operation("-", Operation("+", a, b), rng.randint(1, 99)),
        Operation("+", Operation("-", high, low), long),
        Operation("-", long, Operation("-", high, low)),
        Operation("-", long, Operation("+", a, b)),
        Operation("/", Operation("+", a, b), digit),
        Operation("/", Operation("-", high, low), digit),
        Operation("+", Operation("/", long * digit, digit), a),
    )
    expression = rng.choice(candidates)
    if evaluate(expression) < 0:
        return None
    if expression.operator == "/" and evaluate(expression.left) % digit:
        return None
    return expression


_DRAWERS: dict[int, Callable[[random.Random], Operation | None]] = {
    1: _level_1,
    2: _level_2,
    3: _level_3,
    4: _level_4,
    5: _level_5,
}


def make_test_records() -> list[dict[str, str | int]]:
    """The test problems in the layout of MATH-500, every one of them different."""
    rng = random.Random(TEST_SEED)
    records: list[dict[str, str | int]] = []
    for level in LEVELS:
        seen: set[str] = set()
        while len(seen) < TEST_PROBLEMS_PER_LEVEL:
            problem = draw(rng, level, "test")
            if key(problem.expression) in seen:
                continue
            seen.add(key(problem.expression))
            records.append(
                {
                    "problem": ask(rng, problem.expression),
                    "solution": "\n".join(problem.working.lines) + "\n" + answer_text(problem.working),
                    "answer": problem.answer,
                    "subject": problem.subject,
                    "level": level,
                    "unique_id": f"test/level-{level}/{len(seen)}.json",
                }
            )
    return records


def main() -> None:
    """Write the test file."""
    parser = argparse.ArgumentParser(description="Write the demo model's test problems.")
    parser.add_argument("--out", type=Path, default=TEST_FILE)
    arguments = parser.parse_args()
    records = make_test_records()
    text = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    arguments.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
