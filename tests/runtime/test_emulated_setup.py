"""`--engine emulated:FILE` from the command line on: sizes come from the table, and flags about devices are refused."""

import json
from pathlib import Path
from typing import Any

import pytest

from runtime.cli.console import Report
from runtime.cli.flags import parse_up, read_options
from runtime.cli.print_config import config_in_force
from runtime.compile.flags import parse_compile
from runtime.composition import load
from runtime.engine import EngineSpec
from runtime.errors import UsageError
from runtime.plan import Plan, make_plan
from tests.runtime.step_times import DOCUMENT, with_value


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return written(tmp_path, DOCUMENT)


def written(folder: Path, document: dict[str, Any]) -> Path:
    path = folder / "table.json"
    path.write_text(json.dumps(document))
    return path


def plan(path: Path, line: str = "") -> Plan:
    settings = parse_up([f"--engine=emulated:{path}", *line.split()])
    assert settings is not None
    return make_plan(settings)


def spec(path: Path, line: str = "") -> EngineSpec:
    return next(iter(load(plan(path, line), Report()).engines.values())).spec


def test_without_flags_the_table_decides(path: Path) -> None:
    made = spec(path)
    assert (made.page_size, made.chunk_tokens, made.num_rows) == (16, 64, 8)
    assert (made.max_context_tokens, made.num_pages, made.page_bytes) == (400, 257, 1600)
    assert plan(path).max_context_tokens == 400


def test_a_tpus_table_brings_a_tpus_sizes(tmp_path: Path) -> None:
    document = DOCUMENT | {"platform": "tpu", "max_context_tokens": 100_000, "pool_tokens": 1 << 20}
    document["prefill"] = {"tokens": [512, 4096], "starts": [0], "step_s": [[0.1], [0.2]]}
    document["decode"] = {"rows": [8, 256], "contexts": [0], "step_s": [[0.1], [0.2]]}
    made = spec(written(tmp_path, document))
    assert (made.page_size, made.chunk_tokens, made.num_rows) == (128, 2048, 256)
    # More than the demo model's context: the table's counts.
    assert (made.max_context_tokens, made.usable_pages) == (100_000, (1 << 20) // 128)


@pytest.mark.parametrize(
    ("line", "field", "value"),
    [
        ("--page-size 32", "page_size", 32),
        ("--page-size 64", "num_pages", 65),
        ("--num-pages 77", "num_pages", 77),
        ("--chunked-prefill-size 32", "chunk_tokens", 32),
        ("--chunked-prefill-size -1 --context-length 60", "chunk_tokens", 64),
        ("--max-running-requests 3", "num_rows", 3),
        ("--context-length 100", "max_context_tokens", 100),
    ],
)
def test_smaller_sizes_may_be_asked_for(path: Path, line: str, field: str, value: int) -> None:
    assert getattr(spec(path, line), field) == value


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("--num-pages 258", "--num-pages 258: allowed: at most the 257 pages of the step-time table"),
        ("--chunked-prefill-size 128", "--chunked-prefill-size 128: allowed: at most the 64 tokens of"),
        ("--chunked-prefill-size -1", "--chunked-prefill-size 400: allowed: at most the 64 tokens of"),
        ("--max-running-requests 9", "--max-running-requests 9: allowed: at most the 8 requests of"),
        ("--context-length 401", "--context-length 401: allowed: at most the 400 tokens of"),
        ("--page-size 128", "--page-size 128: allowed: at most the 64 tokens of"),
        ("--topology mixed=2x2", "--topology 'mixed=2x2' with --engine 'emulated:"),
        ("--tp-size 2", "--tp-size 2 with --engine 'emulated:"),
        ("--device cpu", "--device cpu with --engine 'emulated:"),
        ("--dtype float32", "--dtype float32 with --engine 'emulated:"),
        ("--attention-backend xla", "--attention-backend xla with --engine 'emulated:"),
        ("--mem-fraction-static 0.5", "--mem-fraction-static 0.5 with --engine 'emulated:"),
        ("--use-sort-for-toppk-minp", "--use-sort-for-toppk-minp with --engine 'emulated:"),
    ],
)
def test_what_an_emulated_slice_cannot_do_is_told_in_a_line(path: Path, line: str, told: str) -> None:
    with pytest.raises(UsageError) as refusal:
        plan(path, line)
    message = str(refusal.value)
    assert message.startswith(told)
    assert "allowed: " in message
    assert "\n" not in message


def test_mixed_slices_go_as_far_as_the_tables_mixed_steps(tmp_path: Path) -> None:
    document = with_value("mixed", "tokens", [16, 32])
    document["mixed"]["rows"] = [2, 4]
    path = written(tmp_path, document)
    made, apart = spec(path, "--topology mixed=2"), spec(path)
    assert (made.chunk_tokens, made.num_rows) == (32, 4)
    assert (apart.chunk_tokens, apart.num_rows) == (64, 8)


def test_any_number_of_slices_needs_no_devices(path: Path) -> None:
    loaded = load(plan(path, "--topology prefill=100,decode=28"), Report())
    assert len(loaded.engines) == 128
    assert str(load(plan(path), Report()).topology) == "prefill=1x1,decode=1x1"


def test_the_start_says_loudly_what_it_is(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    loaded = load(plan(path, "--emulation-stretch 10"), Report())
    printed = capsys.readouterr().out
    assert printed.count("EMULATED") >= 2
    assert "tiny, float32, on cpu" in printed
    assert "by hand; times x10" in printed
    assert loaded.plan.engine == "emulated: tiny float32, estimated: by hand; times x10"


def test_the_configuration_in_force_is_the_tables(path: Path) -> None:
    text = config_in_force(read_options([f"--engine=emulated:{path}", "--page-size=32"]))
    lines = {line.split(" = ")[0]: line.split(" = ")[1].split() for line in text.splitlines() if " = " in line}
    assert lines["chunked-prefill-size"] == ["64", "#", "step-time", "table"]
    assert lines["context-length"] == ["400", "#", "step-time", "table"]
    assert lines["num-pages"] == ["129", "#", "step-time", "table"]
    assert lines["page-size"] == ["32", "#", "flag", "--page-size"]


def test_nothing_emulated_is_compiled(path: Path) -> None:
    with pytest.raises(UsageError, match="--engine 'emulated:.*: allowed: jax, or with `runtime up`"):
        parse_compile([f"--engine=emulated:{path}"])
