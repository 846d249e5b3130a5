"""The demo model's problems: right workings, five levels, and splits that never meet."""

from __future__ import annotations

import ast
import json
import random
import re

import pytest

from runtime.demo.arithmetic import Operation, evaluate, key, to_text, work_out
from runtime.demo.examples import LEVEL_WEIGHTS, draw_texts
from runtime.demo.phrasing import ask, reply
from runtime.demo.problems import LEVELS, TEST_FILE, TEST_PROBLEMS_PER_LEVEL, draw, make_test_records, split_of

FIELDS = {"problem", "solution", "answer", "subject", "level", "unique_id"}
RECORDS = [json.loads(line) for line in TEST_FILE.read_text(encoding="utf-8").splitlines()]


def restated(solution: str) -> str:
    """The expression a working begins with."""
    return solution.removeprefix("<think>\n").split("\n")[0]


def parse(text: str) -> Operation:
    """An expression from its text, through Python's own parser."""
    operators: dict[type, str] = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/"}

    def build(node: ast.expr) -> Operation | int:
        if isinstance(node, ast.Constant):
            assert isinstance(node.value, int)
            return node.value
        assert isinstance(node, ast.BinOp)
        return Operation(operators[type(node.op)], build(node.left), build(node.right))  # type: ignore[arg-type]

    expression = build(ast.parse(text, mode="eval").body)
    assert isinstance(expression, Operation)
    return expression


def test_the_file_is_what_the_generator_makes() -> None:
    assert make_test_records() == RECORDS


def test_the_file_has_the_layout_of_math_500() -> None:
    assert len(RECORDS) == 500
    assert all(set(record) == FIELDS for record in RECORDS)
    assert len({record["unique_id"] for record in RECORDS}) == 500
    assert all(sum(record["level"] == level for record in RECORDS) == TEST_PROBLEMS_PER_LEVEL for level in LEVELS)


def test_answers_are_right_by_pythons_own_arithmetic() -> None:
    for record in RECORDS:
        text = restated(record["solution"])
        assert eval(text) == int(record["answer"]), record
        assert record["solution"].endswith(f"\\boxed{{{record['answer']}}}.")


def test_test_problems_are_distinct_and_in_the_test_split() -> None:
    expressions = [parse(restated(record["solution"])) for record in RECORDS]
    assert all(split_of(expression) == "test" for expression in expressions)
    for level in LEVELS:
        keys = {key(e) for e, r in zip(expressions, RECORDS, strict=True) if r["level"] == level}
        assert len(keys) == TEST_PROBLEMS_PER_LEVEL


def test_training_texts_hold_no_test_problem_not_even_as_a_step() -> None:
    held_out = {key(parse(restated(record["solution"]))) for record in RECORDS}
    rng = random.Random(3)
    operation_line = re.compile(r"^-?\(?\d+[-+*/]\d+\)?$")
    for _ in range(3000):
        _, answer = draw_texts(rng)
        lines = answer.strip().split("\n")
        if len(lines) < 4:  # small talk has no working
            continue
        for text in [lines[1], *(line for line in lines[2:] if operation_line.match(line))]:
            expression = parse(text.removeprefix("-"))
            assert split_of(expression) == "train", answer
            assert key(expression) not in held_out, answer


@pytest.mark.parametrize("level", LEVELS)
def test_drawn_problems_are_worked_out_right(level: int) -> None:
    rng = random.Random(level)
    for split in ("train", "test"):
        for _ in range(300):
            problem = draw(rng, level, split)  # type: ignore[arg-type]
            text = to_text(problem.expression)
            assert eval(text) == int(problem.answer)
            assert problem.level == level
            assert split_of(problem.expression) == split
            assert problem.working.lines[0] == text
            assert problem.working.lines[-1] == f"={problem.answer}"


def test_every_column_of_a_working_is_true() -> None:
    rng = random.Random(5)
    column = re.compile(r"^(\d+[-+*]\d+(?:[-+]\d)?)=(\d+)(?:\+(\d)=(\d+))?;\d+$")
    division = re.compile(r"^(\d+)/(\d)=(\d)r(\d);\d+$")
    seen = 0
    for level in LEVELS:
        for _ in range(200):
            for line in draw(rng, level, "train").working.lines:
                if match := column.match(line):
                    terms = re.sub(r"\b0+(\d)", r"\1", match[1])
                    assert eval(terms) == int(match[2]), line
                    assert match[3] is None or int(match[2]) + int(match[3]) == int(match[4]), line
                    seen += 1
                elif match := division.match(line):
                    assert divmod(int(match[1]), int(match[2])) == (int(match[3]), int(match[4])), line
                    seen += 1
    assert seen > 2000


def test_the_same_problem_in_another_order_has_the_same_key() -> None:
    for one, other in (("7+8", "8+7"), ("3*(4+5)", "(5+4)*3"), ("37-58", "58-37"), ("1+2+3", "3+(1+2)")):
        assert key(parse(one)) == key(parse(other))
    for one, other in (("7+8", "7*8"), ("9-(5-2)", "9-5-2"), ("8/2", "2/8")):
        assert key(parse(one)) != key(parse(other))


def test_a_division_that_is_not_exact_names_its_remainder() -> None:
    working = work_out(Operation("/", 17, 5))
    assert (working.value, working.remainder) == (3, 2)
    assert reply(working).endswith("The answer is \\boxed{3} remainder 2.")


def test_generation_is_deterministic() -> None:
    def sample() -> list[str]:
        rng = random.Random(11)
        return ["".join(draw_texts(rng)) for _ in range(200)]

    assert sample() == sample()
    assert len(LEVEL_WEIGHTS) == len(LEVELS)


def test_wordings_name_both_numbers() -> None:
    rng = random.Random(13)
    for _ in range(2000):
        expression = draw(rng, rng.choice(LEVELS), "train").expression
        question = ask(rng, expression)
        numbers = re.findall(r"\d+", to_text(expression))
        assert sorted(re.findall(r"\d+", question)) == sorted(numbers)
        assert evaluate(expression) == eval(to_text(expression))
