"""A server whose settings come from a file and from flags: a hub model out of a cache, keys, names, limits, warm-up."""

import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.e2e.server import ServerProcess, server_process
from tests.runtime.command import copy_of_demo

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

HUB_ID = "someone/some-model"
FILE = """
topology = "mixed=1"
max-running-requests = 4
context_length = 128
page-size = 16
chunked-prefill-size = -1
api-key = ["hush-1", "hush-2"]
port = 1
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    root = tmp_path_factory.mktemp("flags")
    cache = root / "downloads" / "models--someone--some-model"
    copy_of_demo(cache / "snapshots" / "main-commit")
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text("main-commit")
    (root / "up.toml").write_text(FILE)
    flags = ("--config", str(root / "up.toml"), "--model-path", HUB_ID, f"--download-dir={root / 'downloads'}")
    with server_process(*flags, "--log-level=info", HF_HOME=str(root / "none"), HF_HUB_OFFLINE="1") as process:
        process.wait_until_serving()
        yield process


@pytest.fixture
def client(server: ServerProcess) -> Iterator[httpx.Client]:
    headers = {"Authorization": "Bearer hush-2"}
    with httpx.Client(base_url=server.url, headers=headers, timeout=120) as made:
        yield made


def test_a_hub_model_is_found_in_the_download_folder_and_served_under_its_id(
    server: ServerProcess, client: httpx.Client
) -> None:
    assert any(line.startswith(f"Found {HUB_ID} in ") for line in server.output)
    assert [model["id"] for model in client.get("/v1/models").json()["data"]] == [HUB_ID]
    body = {"model": HUB_ID, "prompt": "37+58=", "max_tokens": 4}
    assert client.post("/v1/completions", json=body).status_code == 200
    assert client.post("/v1/completions", json=body | {"model": "some-model"}).status_code == 404


def test_flags_and_file_are_in_force_together(server: ServerProcess) -> None:
    assert "(mixed=1x1, ready in" in server.text
    assert "tokens (" in next(line for line in server.output if line.startswith("  mixed.0"))
    assert ", 4 rows" in server.text
    assert not server.url.endswith(":1")
    assert any(" INFO " in line for line in server.output)
    assert "hush" not in server.text


def test_the_context_ends_where_it_was_said_to(client: httpx.Client) -> None:
    refused = client.post("/v1/completions", json={"prompt": "1", "max_tokens": 128})
    assert refused.status_code == 400
    assert "128" in refused.json()["error"]["message"]
    assert refused.json()["error"]["param"] == "max_tokens"


def test_a_prompt_that_comes_again_is_cached_unless_its_salt_is_another(client: httpx.Client) -> None:
    body = {"prompt": list(range(10, 60)), "max_tokens": 2}
    salts = (None, None, "tenant", "tenant")
    answers = [client.post("/v1/completions", json=body | {"cache_salt": salt}).json() for salt in salts]
    hits = [answer["usage"]["prompt_tokens_details"]["cached_tokens"] for answer in answers]
    assert hits == [0, 48, 0, 48]


def test_a_key_is_asked_for(server: ServerProcess, client: httpx.Client) -> None:
    assert httpx.get(f"{server.url}/v1/models").status_code == 401
    assert httpx.get(f"{server.url}/v1/models", headers={"Authorization": "Bearer hush-3"}).status_code == 401
    assert client.get("/v1/models").status_code == 200
    assert httpx.get(f"{server.url}/health").status_code == 200


def test_one_request_of_its_own_was_answered_before_it_said_that_it_serves(server: ServerProcess) -> None:
    warm = [index for index, line in enumerate(server.output) if line.startswith("  warm-up request  answered in")]
    serving = [index for index, line in enumerate(server.output) if line.startswith("Serving ")]
    assert len(warm) == len(serving) == 1
    assert warm < serving


def test_a_signal_while_the_hub_is_asked_ends_it_at_once(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as hub:
        hub.settimeout(60)
        endpoint = f"http://127.0.0.1:{hub.getsockname()[1]}"
        with server_process(
            "--model", HUB_ID, HF_HOME=str(tmp_path), HF_ENDPOINT=endpoint, HF_HUB_OFFLINE="0"
        ) as process:
            asked, _ = hub.accept()  # and never answers
            with asked:
                process.send(signal.SIGINT)
                assert process.exit_code() == 130
        assert process.output == []
