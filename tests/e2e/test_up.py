"""`runtime up` as a process: it serves the demo model, drains on a signal, and leaves without a trace."""

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.e2e.server import ServerProcess, server_process

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
QUESTION = [{"role": "user", "content": "What is 37 + 58?"}]
LONG = {"prompt": "1 2 3", "max_tokens": 3000, "ignore_eos": True, "stream": True}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Compiled programs, shared by the servers of this file."""
    return tmp_path_factory.mktemp("jit")


@pytest.fixture
def server(cache: Path) -> Iterator[ServerProcess]:
    with server_process("--max-running-requests", "4", JAX_COMPILATION_CACHE_DIR=str(cache)) as process:
        process.wait_until_serving()
        yield process


def events(response: httpx.Response) -> Iterator[dict[str, object]]:
    for line in response.iter_lines():
        if line.startswith("data: ") and line != "data: [DONE]":
            yield json.loads(line.removeprefix("data: "))


def test_it_answers_in_a_stream_and_ends_cleanly_on_sigterm(server: ServerProcess) -> None:
    assert "prefill=1x1,decode=1x1" in server.text
    with httpx.Client(base_url=server.url, timeout=120) as client:
        health = client.get("/health").json()
        assert health["status"] == "ready"
        assert set(health["workers"]) == {"prefill.0", "decode.0"}
        body = {"model": server.name, "messages": QUESTION, "stream": True, "temperature": 0, "max_tokens": 64}
        with client.stream("POST", "/v1/chat/completions", json=body) as response:
            assert response.status_code == 200
            chunks = list(events(response))
    texts = [chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks if chunk.get("choices")]  # type: ignore[index]
    assert "".join(texts)
    server.send(signal.SIGTERM)
    assert server.exit_code() == 0
    assert "Traceback" not in server.text
    assert server.output[-1] == "Stopped."


def test_slices_of_unequal_width_serve(cache: Path) -> None:
    """`--tp-size` is the width of the role that names none."""
    flags = ("--topology", "prefill=1x1,decode=1", "--tp-size", "2", "--max-running-requests", "4")
    with server_process(*flags, JAX_COMPILATION_CACHE_DIR=str(cache)) as process:
        process.wait_until_serving()
        assert "prefill=1x1,decode=1x2" in process.text
        body = {"model": process.name, "messages": QUESTION, "temperature": 0, "max_tokens": 64}
        answer = httpx.post(f"{process.url}/v1/chat/completions", json=body, timeout=120).json()
        assert "95" in answer["choices"][0]["message"]["content"]
        process.send(signal.SIGTERM)
        assert process.exit_code() == 0
        assert "Traceback" not in process.text


def test_a_signal_lets_a_running_answer_finish_and_refuses_new_ones(server: ServerProcess) -> None:
    body = LONG | {"model": server.name, "max_tokens": 400}
    with httpx.Client(base_url=server.url, timeout=120) as client, httpx.Client(base_url=server.url) as late:
        with client.stream("POST", "/v1/completions", json=body) as response:
            chunks = events(response)
            next(chunks)
            server.send(signal.SIGINT)
            server.wait_for("^Draining")
            assert late.get("/health").status_code == 503
            refused = late.post("/v1/completions", json={"model": server.name, "prompt": "1", "max_tokens": 1})
            assert refused.status_code == 503
            last = list(chunks)[-1]
        assert last["choices"][0]["finish_reason"] == "length"  # type: ignore[index]
    assert server.exit_code() == 0
    assert "Traceback" not in server.text


def test_the_drain_timeout_cuts_off_what_still_runs(cache: Path) -> None:
    flags = ("--max-running-requests", "4", "--drain-timeout", "0.2")
    with server_process(*flags, JAX_COMPILATION_CACHE_DIR=str(cache)) as server:
        server.wait_until_serving()
        with httpx.stream("POST", f"{server.url}/v1/completions", json=LONG | {"model": server.name}) as response:
            lines = response.iter_lines()
            next(lines)
            server.send(signal.SIGTERM)
            server.wait_for("^Drain timeout")
            rest = [line for line in lines if line.startswith("data: ")]
        assert any("error" in line for line in rest[-2:])
        assert server.exit_code() == 0
        assert "Traceback" not in server.text


@pytest.mark.parametrize(("first", "second"), [(signal.SIGTERM, signal.SIGTERM), (signal.SIGINT, signal.SIGINT)])
def test_a_second_signal_ends_it_at_once(server: ServerProcess, first: signal.Signals, second: signal.Signals) -> None:
    with httpx.stream("POST", f"{server.url}/v1/completions", json=LONG | {"model": server.name}) as response:
        next(response.iter_lines())
        server.send(first)
        server.wait_for("^Draining")
        server.send(second)
        assert server.exit_code() == 128 + second
    assert "Traceback" not in server.text


def test_a_signal_while_loading_ends_it_at_once(cache: Path) -> None:
    with server_process(JAX_COMPILATION_CACHE_DIR=str(cache)) as server:
        server.wait_for("^Model ")
        server.send(signal.SIGTERM)
        assert server.exit_code() == 0
        assert "Traceback" not in server.text


def test_health_says_starting_while_it_loads(tmp_path: Path) -> None:
    with server_process(JAX_COMPILATION_CACHE_DIR=str(tmp_path)) as server:
        url = server.wait_for(r"^Listening on (\S+),")[1]
        with httpx.Client(base_url=url, timeout=60) as client:
            health = client.get("/health")
            assert (health.status_code, health.json()) == (503, {"status": "starting"})
            refused = client.post("/v1/completions", json={"prompt": "1"})
            assert refused.status_code == 503
            assert refused.json()["error"]["code"] == "starting"
            assert int(refused.headers["retry-after"]) > 0
