"""What counts as right: equal mathematics in other words, and nothing else; a comparison that hangs hangs nothing."""

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest

from loadtest.accuracy.comparison import Comparison, Grade, boxed
from loadtest.accuracy.score import confidence
from loadtest.search import wilson

PAIRS: list[tuple[str, str, Grade]] = [
    ("\\frac{1}{2}", "0.5", "right"),
    ("\\frac{1}{2}", "\\dfrac{2}{4}", "right"),
    ("3", "x=3", "right"),
    ("[1,2)", "x \\in [1, 2)", "right"),
    ("(-\\infty, 2) \\cup (3, \\infty)", "(-\\infty,2)\\cup(3,\\infty)", "right"),
    ("\\left( 3, \\frac{\\pi}{2} \\right)", "(3, \\pi/2)", "right"),
    ("x^2+2x+1", "(x+1)^2", "right"),
    ("1,-2", "-2, 1", "right"),
    ("10,000", "10000", "right"),
    ("\\text{Evelyn}", "Evelyn", "right"),
    ("\\frac{1}{2}", "0.25", "wrong"),
    ("[1,2)", "[1,2]", "wrong"),
    ("(1,2)", "(2,1)", "wrong"),
    ("3", "4", "wrong"),
    ("4", "???", "unparsed"),
    ("4", "\\frac{", "unboxed"),
    ("4", "", "unparsed"),
]
HANGS = "9^{9^{9^{9}}}"


async def grades(pairs: Sequence[tuple[str, str]], limit_s: float) -> list[Grade]:
    async with Comparison(limit_s) as comparison:
        return [await comparison.grade(f"first \\boxed{{0}}, so \\boxed{{{found}}}", gold) for gold, found in pairs]


def test_equal_is_right_in_any_form_and_unequal_is_not() -> None:
    assert asyncio.run(grades([(gold, found) for gold, found, _ in PAIRS], 60.0)) == [grade for *_, grade in PAIRS]


def test_a_comparison_without_end_is_ended_and_the_next_one_goes_on() -> None:
    pairs = [("4", "2+2"), ("10", HANGS), ("4", "2+2")]
    assert asyncio.run(grades(pairs, 3.0)) == ["right", "undecided", "right"]


@pytest.mark.parametrize(("ending", "limit_s"), [("", 60.0), ("import time; time.sleep(600)", 0.1)])
def test_a_worker_that_dies_or_hangs_is_replaced(
    ending: str, limit_s: float, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    worker = tmp_path / "worker.py"
    worker.write_text(f"import sys\nprint('\"ready\"', flush=True)\nsys.stdin.readline()\n{ending}\n")
    monkeypatch.setattr("loadtest.accuracy.comparison.WORKER", worker)
    pairs = [("4", "2+2"), ("4", "4"), ("4", "3+1")]
    assert asyncio.run(grades(pairs, limit_s)) == ["undecided", "right", "undecided"]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("\\boxed{95}", "95"),
        ("first \\boxed{1}, then \\boxed{\\frac{1}{2}}.", "\\frac{1}{2}"),
        ("95", None),
        ("\\boxed{95", None),
    ],
)
def test_the_last_box_counts(text: str, found: str | None) -> None:
    assert boxed(text) == found


def test_one_repeat_is_wilsons_interval_and_several_are_a_bootstrap_over_problems() -> None:
    assert confidence([1.0] * 409 + [0.0] * 91, 1) == (*wilson(409, 500), "wilson")
    low, high, name = confidence([1.0] * 380 + [2 / 3] * 20 + [1 / 3] * 30 + [0.0] * 70, 3)
    assert name == "bootstrap"
    assert (low, high) == (pytest.approx(0.776, abs=0.01), pytest.approx(0.837, abs=0.01))
    assert confidence([1.0] * 43, 3) == (*wilson(43, 43), "wilson")
