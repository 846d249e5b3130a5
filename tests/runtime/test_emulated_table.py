"""Step-time tables: times between, at and beyond their points, against numbers worked out by hand; files that lie."""

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from runtime.emulated.table import StepShape, StepTable, interpolated, load_table, shape_of
from runtime.engine import PrefillSegment, Step
from runtime.errors import UsageError
from tests.runtime.step_times import DOCUMENT, table, with_value


def segment(count: int, start: int) -> PrefillSegment:
    return PrefillSegment(tokens=tuple(range(count)), start=start, pages=())


@pytest.mark.parametrize(
    ("at", "value"),
    [(0, 1.0), (10, 1.0), (15, 2.0), (20, 3.0), (30, 5.0), (40, 7.0), (50, 9.0)],
)
def test_values_are_linear_between_points_and_go_on_beyond_the_last(at: float, value: float) -> None:
    assert interpolated((10, 20, 40), (1.0, 3.0, 7.0), at) == pytest.approx(value)


def test_beyond_the_last_point_nothing_gets_faster() -> None:
    assert interpolated((10, 20), (3.0, 1.0), 15) == 2.0
    assert interpolated((10, 20), (3.0, 1.0), 30) == 1.0
    assert interpolated((10,), (3.0,), 99) == 3.0


@pytest.mark.parametrize(
    ("shape", "expected_s"),
    [
        (StepShape(tokens=32), 0.3),
        (StepShape(tokens=33), 0.6),
        (StepShape(tokens=64, start=50), 0.7),
        (StepShape(tokens=64, start=150), 0.9),
        (StepShape(rows=4, context=100), 0.1),
        (StepShape(rows=4, context=150), 0.15),
        (StepShape(rows=5, context=300), 0.5),
        (StepShape(tokens=32, rows=4, context=100), 0.38),
        (StepShape(tokens=32, rows=4, start=100, context=200), 0.38 + 0.1 + 0.1),
        (StepShape(tokens=40, rows=8, start=50, context=250), 0.9 + 0.1 + 0.3),
    ],
)
def test_a_steps_time_is_worked_out_by_hand(shape: StepShape, expected_s: float) -> None:
    assert table().step_s(shape) == pytest.approx(expected_s)


@pytest.mark.parametrize("shape", [StepShape(tokens=65), StepShape(rows=9), StepShape(tokens=65, rows=1)])
def test_a_step_beyond_the_table_has_no_time(shape: StepShape) -> None:
    with pytest.raises(ValueError, match="more than the largest bucket"):
        table().step_s(shape)


def test_a_mixed_step_never_takes_less_than_nothing() -> None:
    times = with_value("mixed", "step_s", [[0.0, 0.0], [0.0, 0.0]])
    times["mixed"]["context"] = 300
    assert msgspec.convert(times, StepTable).step_s(StepShape(tokens=32, rows=4, context=100)) == 0.0


def test_segments_count_as_one_that_attends_to_as_much() -> None:
    one = shape_of(Step(prefill=(segment(64, 128),)), {})
    assert (one.tokens, one.start, one.rows) == (64, 128.0, 0)
    # 30 tokens at 100 attend to 30 * 115, 10 at 0 to 10 * 5: 3500 in all, which 40 tokens do after 67.5.
    both = shape_of(Step(prefill=(segment(30, 100), segment(10, 0))), {})
    assert (both.tokens, both.start) == (40, 67.5)
    # Two short prompts attend to less than one of their length: no start below 0.
    assert shape_of(Step(prefill=(segment(20, 0), segment(20, 0))), {}).start == 0.0


def test_rows_count_with_their_mean_context() -> None:
    shape = shape_of(Step(prefill=(segment(8, 16),), decode=(2, 5)), {2: 10, 5: 30, 7: 1000})
    assert shape == StepShape(tokens=8, start=16.0, rows=2, context=20.0)


def test_a_stretched_table_lasts_longer_everywhere_and_says_so() -> None:
    plain, slow = table(), table().stretched(10)
    for shape in (StepShape(tokens=40, start=70), StepShape(rows=3, context=170), StepShape(tokens=1, rows=1)):
        assert slow.step_s(shape) == pytest.approx(10 * plain.step_s(shape))
    for name in ("gather", "insert", "transfer"):
        assert getattr(slow, name).of(48) == pytest.approx(10 * getattr(plain, name).of(48))
    assert slow.label == "emulated: tiny float32, estimated: by hand; times x10"
    assert plain.stretched(1).label == "emulated: tiny float32, estimated: by hand"


def test_a_file_gives_the_table(tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    path.write_text(json.dumps(DOCUMENT))
    assert load_table(path) == table()


@pytest.mark.parametrize(
    ("document", "told"),
    [
        ("{", "Input data was truncated"),
        ("[]", "Expected `object`, got `array`"),
        ({"format": "else"}, "Invalid enum value 'else' - at `$.format`"),
        (DOCUMENT | {"platform": "abacus"}, "Invalid enum value 'abacus' - at `$.platform`"),
        (DOCUMENT | {"speed": 1}, "unknown field `speed`"),
        (DOCUMENT | {"pool_tokens": 0}, "pool_tokens is 0; allowed: at least 1"),
        (with_value("prefill", "starts", [0, 100, 100]), "prefill.starts is [0, 100, 100]; allowed: ascending"),
        (with_value("prefill", "tokens", []), "prefill.tokens is []; allowed: ascending whole numbers from 1 on"),
        (with_value("decode", "rows", [0, 8]), "decode.rows is [0, 8]; allowed: ascending whole numbers from 1 on"),
        (with_value("decode", "contexts", [9, 8]), "decode.contexts is [9, 8]; allowed: ascending"),
        (
            with_value("decode", "step_s", [[0.1, 0.2], [0.3]]),
            "decode.step_s has rows of [2, 1] values; allowed: 2 rows, one for each of rows, of 2 values, one for each "
            "of contexts",
        ),
        (with_value("prefill", "step_s", [[0.1, 0.2]]), "prefill.step_s has rows of [2] values; allowed: 2 rows"),
        (with_value("mixed", "step_s", [[0.1, -0.2], [0.3, 0.4]]), "mixed.step_s has -0.2; allowed: at least 0"),
        (with_value("mixed", "start", -1), "mixed.start is -1; allowed: at least 0"),
        (with_value("gather", "per_token_s", -1e-9), "gather.per_token_s is -1e-09; allowed: at least 0 seconds"),
        (with_value("gather", "fixed_s", "none"), "Expected `float`, got `str` - at `$.gather.fixed_s`"),
    ],
)
def test_a_bad_file_is_one_line(tmp_path: Path, document: Any, told: str) -> None:
    path = tmp_path / "table.json"
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    with pytest.raises(UsageError) as refusal:
        load_table(path)
    message = str(refusal.value)
    assert message.startswith(f"--engine 'emulated:{path}': ")
    assert told in message
    assert "\n" not in message


def test_a_missing_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read \\(No such file or directory\\); allowed: a step-time table"):
        load_table(tmp_path / "none.json")


def test_the_documents_example_is_a_table(tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "docs" / "emulation.md").read_text()
    path = tmp_path / "example.json"
    path.write_text(text.split("```json\n")[1].split("```")[0])
    assert load_table(path).source == "measured"
