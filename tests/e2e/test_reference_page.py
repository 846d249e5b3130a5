"""The launch commands of the reference page, taken literally, start `runtime up`.

Only what a machine without a TPU and without the network cannot have is replaced: the program, the device, the model
by a folder, the compile cache by the test run's own.
"""

import os
import re
import shlex
from pathlib import Path

import httpx
import pytest

from tests.checkpoints import write_checkpoint
from tests.e2e.server import server_process

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

BFLOAT16 = r"""
JAX_COMPILATION_CACHE_DIR=/tmp/jit_cache python3 -u -m sgl_jax.launch_server \
--model-path deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B \
--trust-remote-code  \
--tp-size=4 \
--device=tpu \
--mem-fraction-static=0.8 \
--chunked-prefill-size=2048 \
--download-dir=/tmp \
--dtype=bfloat16 \
--max-running-requests 256 \
--skip-server-warmup \
--page-size=128  \
--disable-radix-cache \
--use-sort-for-toppk-minp
"""
FLOAT32 = BFLOAT16.replace("bfloat16", "float32")
VARIABLE, PROGRAM, MODEL = (
    "JAX_COMPILATION_CACHE_DIR",
    "sgl_jax.launch_server",
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B",
)
SAMPLING = {"temperature": 0.6, "top_p": 0.95, "seed": 1, "max_tokens": 8}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model with random weights, whose heads four devices could share."""
    root = tmp_path_factory.mktemp("reference")
    return write_checkpoint(
        root / "model",
        num_layers=1,
        num_heads=4,
        num_kv_heads=4,
        head_dim=16,
        max_position_embeddings=1024,
        dtype="bfloat16",
    )


def flags_of(command: str, model: Path) -> list[str]:
    """The command's flags as they are, with this machine's device and model."""
    words = shlex.split(command.replace("\\\n", " "))
    flags = words[words.index(PROGRAM) + 1 :]
    here = {MODEL: str(model), "--device=tpu": "--device=cpu"}
    assert set(here) <= set(flags)
    return [here.get(word, word) for word in flags]


@pytest.mark.parametrize(("command", "dtype"), [(BFLOAT16, "bfloat16"), (FLOAT32, "float32")])
def test_a_launch_command_serves(command: str, dtype: str, folder: Path) -> None:
    assert shlex.split(command)[0].startswith(f"{VARIABLE}=")
    with server_process(*flags_of(command, folder), **{VARIABLE: os.environ[VARIABLE]}) as server:
        server.wait_until_serving()
        assert f"(Qwen2ForCausalLM, {dtype}) from {folder}" in server.text
        slices = [line for line in server.output if "KV pages of" in line]
        assert slices
        assert all("KV pages of 128 tokens" in line and ", 256 rows" in line for line in slices)
        assert re.search(r"^Serving .* \(prefill=1x4,decode=1x4,", server.text, re.M), "a CPU can be split at will"
        assert "warm-up request" not in server.text
        body = {"model": server.name, "messages": [{"role": "user", "content": "What is 37 + 58?"}], **SAMPLING}
        answer = httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=120)
        assert answer.status_code == 200, answer.text
        assert answer.json()["usage"]["completion_tokens"] >= 1
        assert answer.json()["choices"][0]["finish_reason"] in ("stop", "length")
        for _ in range(2):  # --disable-radix-cache
            body = {"model": server.name, "prompt": list(range(10, 210)), "max_tokens": 2}
            usage = httpx.post(f"{server.url}/v1/completions", json=body, timeout=120).json()["usage"]
            assert usage["prompt_tokens_details"] == {"cached_tokens": 0}
