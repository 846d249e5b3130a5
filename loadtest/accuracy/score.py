"""Pass@1 of graded answers, per level and overall, with the interval that its few problems leave open."""

import random
from collections import Counter
from collections.abc import Mapping, Sequence

import msgspec

from loadtest.accuracy.answers import Answer
from loadtest.accuracy.comparison import Grade
from loadtest.accuracy.problems import Problem
from loadtest.search import wilson
from loadtest.statistics import Summary

RESAMPLES = 2000
OVERALL = "OVERALL"
Graded = Mapping[tuple[int, str], Grade]
"""By repeat and problem."""


class Row(msgspec.Struct, frozen=True):
    """A level's score, or all levels'. `low` and `high` bound 95 %; `repeats` are the scores of each."""

    subset: str
    num: int
    score: float
    low: float
    high: float
    interval: str
    repeats: tuple[float, ...]


class Counts(msgspec.Struct, frozen=True):
    """Over all repeats: the answers, those that ran out of tokens, and how they were graded."""

    answers: int
    cut: int
    right: int
    wrong: int
    unboxed: int
    unparsed: int
    undecided: int


def rows(problems: Sequence[Problem], grades: Graded, repeats: int) -> list[Row]:
    """One per level that occurs, then one for all."""
    levels = sorted({problem.level for problem in problems})
    picked = [(f"Level {level}", [one for one in problems if one.level == level]) for level in levels]
    return [_row(subset, some, grades, repeats) for subset, some in [*picked, (OVERALL, list(problems))]]


def _row(subset: str, problems: Sequence[Problem], grades: Graded, repeats: int) -> Row:
    solved = [[grades[repeat, one.unique_id] == "right" for one in problems] for repeat in range(repeats)]
    shares = [sum(each) / repeats for each in zip(*solved, strict=True)]
    low, high, interval = confidence(shares, repeats)
    each_repeat = tuple(sum(one) / len(problems) for one in solved)
    return Row(subset, len(problems), sum(shares) / len(shares), low, high, interval, each_repeat)


def confidence(shares: Sequence[float], repeats: int) -> tuple[float, float, str]:
    """The 95 % interval of the mean of the fraction of repeats that solved each problem, and its name.

    One repeat is a binomial: Wilson's. Repeats of a problem are no new problems, so that with several the
    problems are drawn again. Where all are equal, that would claim certainty: Wilson's there, too, as if asked once.
    """
    if repeats == 1 or len(set(shares)) == 1 and shares[0] in (0.0, 1.0):
        return *wilson(round(sum(shares)), len(shares)), "wilson"
    rng = random.Random(f"bootstrap {len(shares)}")
    means = Summary.of([sum(rng.choices(shares, k=len(shares))) / len(shares) for _ in range(RESAMPLES)])
    return means.percentile(2.5) or 0.0, means.percentile(97.5) or 0.0, "bootstrap"


def count(answers: Sequence[Answer], grades: Graded) -> Counts:
    """Over all that was asked."""
    by_grade = Counter(grades[answer.repeat, answer.unique_id] for answer in answers)
    return Counts(
        answers=len(answers),
        cut=sum(answer.is_cut for answer in answers),
        right=by_grade["right"],
        wrong=by_grade["wrong"],
        unboxed=by_grade["unboxed"],
        unparsed=by_grade["unparsed"],
        undecided=by_grade["undecided"],
    )
