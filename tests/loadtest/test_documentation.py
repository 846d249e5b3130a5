"""The commands of docs/loadtest.md run, each against a stub and with fewer requests than the reader's."""

import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from loadtest.cli import main
from tests.loadtest.stub import Body, Step, answer, plain, serving

PAGE = Path(__file__).parents[2] / "docs" / "loadtest.md"
SHORTER = {
    "run": ["--quiet", "--max-lag", "60s", "--warmup", "1", "--requests", "2"],
    "sweep": ["--quiet", "--max-lag", "60s", "--warmup", "1", "--duration", "1s", "--from", "100", "--to", "100"],
    "compare": [
        *["--quiet", "--max-lag", "60s", "--warmup", "1", "--requests", "2", "--rates", "100", "--rounds", "1"],
        *["--server-command", f"{sys.executable} -m tests.loadtest.fake_server"],
    ],
    "eval": ["--quiet", "--limit", "2", "--repeats", "1"],
    "report": [],
}
FASTER = ["--rate", "100"]


def commands() -> list[str]:
    blocks = re.findall(r"```sh\n(.*?)```", PAGE.read_text(), re.DOTALL)
    return [line for block in blocks for line in block.replace("\\\n", " ").splitlines() if line.strip()]


def test_the_page_has_commands() -> None:
    assert len(commands()) > 10
    assert {line.split()[0] for line in commands()} == {"loadtest", "mkdir", "printf"}


def reply(number: int, body: Body) -> Sequence[Step]:
    if body.get("stream"):
        return answer(body, 0.001, [0.0] * (body["max_tokens"] - 1))
    return plain(200, {"choices": [{"message": {"content": "\\boxed{0.5}"}, "finish_reason": "stop"}]})


def test_every_command_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(PAGE.parents[1]))
    with serving(reply) as (url, _):
        for line in commands():
            if not line.startswith("loadtest"):
                subprocess.run(["/bin/sh", "-c", line], check=True, timeout=10)
                continue
            argv = shlex.split(line.replace("http://127.0.0.1:8000", url))[1:]
            extra = SHORTER[argv[0]] + (FASTER if "--rate" in argv and "inf" not in argv else [])
            objectives = "--slo" in argv
            end = argv.index("--") if "--" in argv else len(argv)
            # What a busy machine makes of the objectives is not what is tested; without them all must be met.
            assert main([*argv[:end], *extra, *argv[end:]]) in ((0, 1) if objectives else (0,)), line
