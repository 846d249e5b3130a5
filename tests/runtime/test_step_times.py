"""Measuring a step-time table: what is counted, the lines through times, and a whole table of a tiny engine."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from runtime.bench import main, step_times
from runtime.bench.step_times import Cell, fitted, medians
from runtime.emulated.table import Linear, StepShape, load_table

SMALL = (
    "--shape demo --starts 16 --contexts 8,64 --max-context 64 --chunked-prefill-size 32 --max-running-requests 4"
    " --repeats 1"
)


def test_the_first_round_and_the_preparation_are_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    now, told = 0.0, list[tuple[int, int]]()

    def takes(*durations_s: float) -> Callable[[], None]:
        left = list(durations_s)

        def call() -> None:
            nonlocal now
            now += left.pop(0)

        return call

    monkeypatch.setattr(step_times.time, "perf_counter", lambda: now)
    cells = [
        Cell(prepare=takes(9, 9, 9, 9), call=takes(100, 1, 5, 2)),
        Cell(prepare=takes(9, 9, 9, 9), call=takes(100, 30, 10, 20)),
    ]
    assert medians(cells, 3, lambda done, total: told.append((done, total))) == [2, 20]
    assert told == [(done, 8) for done in range(1, 9)]


@pytest.mark.parametrize(
    ("points", "fixed_s", "per_token_s"),
    [
        ([(10, 3.0), (20, 4.0), (40, 6.0)], 2.0, 0.1),
        ([(10, 3.0)], 3.0, 0.0),
        ([(10, 3.0), (20, 1.0)], 2.0, 0.0),
        # Through 0, for the line itself would begin at -1: (1 * 1 + 2 * 3) / (1 + 4).
        ([(1, 1.0), (2, 3.0)], 0.0, 1.4),
    ],
)
def test_times_become_a_line_of_which_no_part_is_below_zero(
    points: list[tuple[int, float]], fixed_s: float, per_token_s: float
) -> None:
    line = fitted(points)
    assert isinstance(line, Linear)
    assert (line.fixed_s, line.per_token_s) == (pytest.approx(fixed_s), pytest.approx(per_token_s))


@pytest.mark.slow
def test_a_table_of_a_tiny_engine_can_be_served(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "table.json"
    assert main([*SMALL.split(), "--step-times", str(path)]) == 0
    table = load_table(path)
    assert (table.model, table.dtype, table.platform, table.source) == ("demo", "bfloat16", "cpu", "measured")
    assert (table.max_context_tokens, table.kv_bytes_per_token, table.pool_tokens) == (64, 1024, 256)
    assert (table.prefill.tokens, table.prefill.starts) == ((32,), (0, 16))
    assert (table.decode.rows, table.decode.contexts) == ((4,), (8, 64))
    assert (table.mixed.tokens, table.mixed.rows, table.mixed.context) == ((32,), (4,), 64)
    for shape in (StepShape(tokens=32), StepShape(rows=4, context=20)):
        assert table.step_s(shape) > 0
    assert all(line.of(64) > 0 for line in (table.gather, table.insert, table.transfer))
    assert re.fullmatch(
        r"runtime bench --step-times FILE --shape demo --repeats 1 on \S.*, \d+ cores, jax [\d.]+, \d{4}-\d\d-\d\d",
        table.how,
    )
    printed = capsys.readouterr().out
    assert "measuring prefill steps: 4 steps in " in printed
    assert f"runtime up --engine emulated:{path}" in printed
