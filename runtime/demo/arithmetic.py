"""Whole-number expressions and their written-out working.

Owns the expression type of the demo model's problems, its canonical key (what makes two problems the same
problem) and the working the model learns to write: one line per column, least digit first, every carry and
borrow spelled out, and after each ``;`` the digits of the result so far. Pure Python; no randomness here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Operator = Literal["+", "-", "*", "/"]
_PRECEDENCE: dict[str, int] = {"+": 1, "-": 1, "*": 2, "/": 2}


@dataclass(frozen=True)
class Operation:
    """``left operator right``; a division is always exact unless it is the whole problem."""

    operator: Operator
    left: Expression
    right: Expression


Expression = int | Operation


@dataclass(frozen=True)
class Working:
    """The lines that solve an expression, the operations worked out in them, and the result.

    ``remainder`` is not zero only for a single division that does not come out even.
    """

    lines: tuple[str, ...]
    operations: tuple[Operation, ...]
    value: int
    remainder: int = 0


def evaluate(expression: Expression) -> int:
    """The value by Python's own arithmetic (floor division), independent of the working."""
    if isinstance(expression, int):
        return expression
    left, right = evaluate(expression.left), evaluate(expression.right)
    match expression.operator:
        case "+":
            return left + right
        case "-":
            return left - right
        case "*":
            return left * right
        case "/":
            return left // right


def to_text(expression: Expression, space: str = "", symbols: dict[str, str] | None = None) -> str:
    """Infix text with only the parentheses that are needed, e.g. ``(12+9)*3``."""
    if isinstance(expression, int):
        return str(expression)
    own = _PRECEDENCE[expression.operator]

    def side(part: Expression, is_right: bool) -> str:
        text = to_text(part, space, symbols)
        if isinstance(part, int):
            return text
        inner = _PRECEDENCE[part.operator]
        # The right side keeps its parentheses even in a + (b + c): the working follows the tree as it is written.
        return f"({text})" if inner < own or (is_right and inner == own) else text

    symbol = (symbols or {}).get(expression.operator, expression.operator)
    return f"{side(expression.left, False)}{space}{symbol}{space}{side(expression.right, True)}"


def key(expression: Expression) -> str:
    """The canonical text of a problem: equal for problems that differ only in the order of their parts.

    ``7+8`` and ``8+7`` are one problem, as are ``3*(4+5)`` and ``(5+4)*3``, and ``37-58`` and ``58-37`` (which is
    worked out as the negative of the other).
    """
    if isinstance(expression, int):
        return str(expression)
    if expression.operator in "+*":
        return f"({expression.operator.join(sorted(_terms(expression, expression.operator)))})"
    left, right = key(expression.left), key(expression.right)
    if expression.operator == "-" and isinstance(expression.left, int) and isinstance(expression.right, int):
        left, right = sorted((left, right))
    return f"({left}{expression.operator}{right})"


def _terms(expression: Expression, operator: str) -> list[str]:
    """Keys of the terms of a sum (or factors of a product), nested ones flattened."""
    if isinstance(expression, Operation) and expression.operator == operator:
        return _terms(expression.left, operator) + _terms(expression.right, operator)
    return [key(expression)]


def work_out(expression: Expression) -> Working:
    """Write the working of an expression: its restatement, each operation column by column, and ``=result``."""
    lines = [to_text(expression)]
    operations: list[Operation] = []
    negative = False
    remainder = 0
    while isinstance(expression, Operation):
        innermost = _innermost(expression)
        if innermost is not expression:
            lines.append(to_text(innermost))
        operations.append(innermost)
        left, right = innermost.left, innermost.right
        assert isinstance(left, int)
        assert isinstance(right, int)
        match innermost.operator:
            case "+":
                value = _add(left, right, lines)
            case "-" if left < right:
                assert innermost is expression, "only a whole problem may have a negative result"
                negative = True
                lines.append(f"-({right}-{left})")
                value = _subtract(right, left, lines)
            case "-":
                value = _subtract(left, right, lines)
            case "*":
                value = _multiply(left, right, lines, operations)
            case "/":
                value, remainder = _divide(left, right, lines)
                assert remainder == 0 or innermost is expression, "an inner division must be exact"
        expression = _replace(expression, innermost, value)
        if isinstance(expression, Operation):
            lines.append(to_text(expression))
    value = -expression if negative else expression
    lines.append(f"={value}" + (f" r {remainder}" if remainder else ""))
    return Working(tuple(lines), tuple(operations), value, remainder)


def _innermost(expression: Operation) -> Operation:
    """The first operation to work out: the leftmost whose two sides are numbers."""
    for part in (expression.left, expression.right):
        if isinstance(part, Operation):
            return _innermost(part)
    return expression


def _replace(expression: Expression, target: Operation, value: int) -> Expression:
    """``expression`` with the operation ``target`` (by identity) replaced by its value."""
    if expression is target:
        return value
    if isinstance(expression, int):
        return expression
    return Operation(
        expression.operator,
        _replace(expression.left, target, value),
        _replace(expression.right, target, value),
    )


def _digits(number: int, width: int) -> list[int]:
    """Digits, least first, padded with zeros to ``width``."""
    return [int(digit) for digit in reversed(str(number).zfill(width))]


def _add(left: int, right: int, lines: list[str]) -> int:
    """Columns ``a+b+carry=tens units;result so far``."""
    width = max(len(str(left)), len(str(right)))
    carry, result = 0, ""
    for column, (a, b) in enumerate(zip(_digits(left, width), _digits(right, width), strict=True)):
        total = a + b + carry
        is_last = column == width - 1
        result = (str(total) if is_last else str(total % 10)) + result
        lines.append(f"{a}+{b}+{carry}={total:02d};{result}")
        carry = total // 10
    return int(result)


def _subtract(left: int, right: int, lines: list[str]) -> int:
    """Columns ``[borrowed ten]a-b-borrow=digit;result so far``, for ``left >= right``."""
    width = len(str(left))
    borrow, result = 0, ""
    for a, b in zip(_digits(left, width), _digits(right, width), strict=True):
        lent = 1 if a < b + borrow else 0
        digit = 10 * lent + a - b - borrow
        result = f"{digit}{result}"
        lines.append(f"{lent}{a}-{b}-{borrow}={digit};{result}")
        borrow = lent
    return int(result)


def _multiply(left: int, right: int, lines: list[str], operations: list[Operation]) -> int:
    """One partial product per digit of the shorter factor, then their sum."""
    if len(str(left)) < len(str(right)):
        left, right = right, left
        lines.append(f"{left}*{right}")
    if right < 10:
        return _multiply_by_digit(left, right, lines)
    total = 0
    for place, digit in enumerate(_digits(right, 1)):
        lines.append(f"{left}*{digit}")
        operations.append(Operation("*", left, digit))
        partial = _multiply_by_digit(left, digit, lines) * 10**place
        if place == 0:
            total = partial
            continue
        lines.append(f"{total}+{partial}")
        operations.append(Operation("+", total, partial))
        total = _add(total, partial, lines)
    return total


def _multiply_by_digit(left: int, digit: int, lines: list[str]) -> int:
    """Columns ``a*digit=product+carry=total;result so far``."""
    width = len(str(left))
    carry, result = 0, ""
    for column, a in enumerate(_digits(left, width)):
        total = a * digit + carry
        is_last = column == width - 1
        result = (str(total) if is_last else str(total % 10)) + result
        lines.append(f"{a}*{digit}={a * digit:02d}+{carry}={total:02d};{result}")
        carry = total // 10
    return int(result)


def _divide(left: int, right: int, lines: list[str]) -> tuple[int, int]:
    """Long division, ``right`` a single digit: ``rest digit/right=quotient r rest;result so far``."""
    rest, result = 0, ""
    for digit in str(left):
        current = 10 * rest + int(digit)
        quotient, rest = divmod(current, right)
        result += str(quotient)
        lines.append(f"{current:02d}/{right}={quotient}r{rest};{result}")
    return int(result), rest
