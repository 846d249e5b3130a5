"""A server on emulated slices: it answers over HTTP, says what it is, needs no jax, and any topology answers alike."""

import json
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from runtime import __version__
from runtime.cli.console import Report
from runtime.cli.flags import parse_up
from runtime.composition import load, service
from runtime.plan import make_plan
from tests.e2e.server import server_process
from tests.runtime.command import LIMIT_S, environment, refusal
from tests.runtime.step_times import fast

pytestmark = pytest.mark.anyio
TOPOLOGIES = ("prefill=2,decode=2", "prefill=1,decode=3", "mixed=1", "mixed=3")
PROMPTS = ["What is 37 + 58?", "7 * 8 = ", "x " * 90]
WITHOUT_JAX = """
import sys
import anyio
from runtime.cli.console import Report
from runtime.cli.flags import parse_up
from runtime.cli.up import warm_up
from runtime.composition import load, service
from runtime.plan import make_plan

plan = make_plan(parse_up(sys.argv[1:]))

async def main():
    async with service(load(plan, Report())) as running:
        assert await warm_up(running.app, plan) is None

anyio.run(main)
print("jax loaded:", "jax" in sys.modules)
"""


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "table.json"
    path.write_text(json.dumps(fast()))
    return path


@asynccontextmanager
async def client(path: Path, *flags: str) -> AsyncIterator[httpx.AsyncClient]:
    """Of a server in this process."""
    settings = parse_up([f"--engine=emulated:{path}", *flags])
    assert settings is not None
    async with service(load(make_plan(settings), Report())) as running:
        transport = httpx.ASGITransport(running.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://emulated", timeout=60) as made:
            yield made


async def completed(http: httpx.AsyncClient, **fields: object) -> dict[str, Any]:
    response = await http.post("/v1/completions", json={"model": "runtime-demo"} | fields)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


async def answers(path: Path, topology: str) -> list[tuple[str, str]]:
    async with client(path, "--topology", topology) as http:
        body: dict[str, Any] = {"max_tokens": 30, "seed": 5, "n": 2}
        found = [await completed(http, prompt=prompt, **body) for prompt in PROMPTS]
    return [(choice["text"], choice["finish_reason"]) for answer in found for choice in answer["choices"]]


async def test_answers_do_not_depend_on_the_topology(path: Path) -> None:
    first, *others = [await answers(path, topology) for topology in TOPOLOGIES]
    assert all(other == first for other in others)
    assert {reason for _, reason in first} == {"length"}
    assert len({text for text, _ in first}) > 1


async def test_it_says_what_it_is(path: Path) -> None:
    async with client(path, "--emulation-stretch", "2") as http:
        assert (await http.get("/version")).json() == {
            "version": __version__,
            "engine": "emulated: tiny float32, estimated: by hand; times x0.001; times x2",
        }
        answer = await completed(http, prompt="1", max_tokens=3)
    assert "emulated" in answer["system_fingerprint"]
    assert answer["usage"]["completion_tokens"] == 3


async def test_what_does_not_fit_the_pool_is_preempted_and_answers_alike(path: Path) -> None:
    """Six answers of 140 tokens on 24 pages of 16 tokens: decoding runs out of pages."""
    body: dict[str, Any] = {"prompt": "What is 37 + 58?", "max_tokens": 140, "seed": 11, "n": 6}
    async with client(path) as http:
        wide = await completed(http, **body)
    async with client(path, "--num-pages", "25", "--decode-reserve-tokens", "1") as http:
        narrow = await completed(http, **body)
    texts = [[choice["text"] for choice in answer["choices"]] for answer in (wide, narrow)]
    assert texts[0] == texts[1]


async def test_the_context_is_the_tables(path: Path) -> None:
    async with client(path) as http:
        response = await http.post("/v1/completions", json={"prompt": "1", "max_tokens": 400})
    assert response.status_code == 400
    assert "400" in response.json()["error"]["message"]


def test_a_start_and_an_answer_need_no_jax(path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_JAX, f"--engine=emulated:{path}", "--topology=prefill=2,decode=2"],
        env=environment(), capture_output=True, text=True, timeout=LIMIT_S, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "jax loaded: False"


def test_a_process_serves_streams_and_drains(path: Path) -> None:
    with server_process("--engine", f"emulated:{path}", "--topology", "prefill=2,decode=2") as server:
        server.wait_until_serving()
        assert "EMULATED" in server.text
        assert "(EMULATED, prefill=2x1,decode=2x1, ready in" in server.text
        body = {
            "model": server.name,
            "messages": [{"role": "user", "content": "What is 37 + 58?"}],
            "max_tokens": 40,
            "stream": True,
            "logprobs": True,
            "top_logprobs": 2,
        }
        with httpx.stream("POST", f"{server.url}/v1/chat/completions", json=body, timeout=60) as response:
            lines = [line.removeprefix("data: ") for line in response.iter_lines() if line]
        assert lines[-1] == "[DONE]"
        chunks = [json.loads(line)["choices"][0] for line in lines[:-1]]
        entries = [entry for chunk in chunks if chunk.get("logprobs") for entry in chunk["logprobs"]["content"]]
        assert len(entries) == 40
        assert {len(entry["top_logprobs"]) for entry in entries} == {2}
        assert chunks[-1]["finish_reason"] == "length"
        server.send(signal.SIGTERM)
        assert server.exit_code() == 0
        assert "Traceback" not in server.text


def test_a_bad_table_is_one_line_and_no_server(tmp_path: Path) -> None:
    line = refusal("up", "--engine", f"emulated:{tmp_path / 'none.json'}")
    assert "none.json': cannot be read (No such file or directory); allowed: a step-time table" in line
