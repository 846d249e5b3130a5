"""The demo model's own problems, for tools that score answers."""

import json
from pathlib import Path

DEMO = Path(__file__).parents[3] / "runtime" / "demo"


def problems(level: int, count: int) -> list[dict[str, str]]:
    """The first so many of a level, with the form of question that the model knows best."""
    lines = (DEMO / "test.jsonl").read_text(encoding="utf-8").splitlines()
    found = [problem for problem in map(json.loads, lines) if problem["level"] == level]
    return found[:count]


def wrong(answer: str) -> list[str]:
    """Three other answers, near the right one."""
    return [str(int(answer) + step) for step in (1, -1, 10)]
