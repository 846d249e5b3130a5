"""The command line, as a user meets it: every mistake is one line on standard error and exit code 2."""

import json
import socket
import struct
from pathlib import Path

import pytest

from runtime import __version__
from tests.runtime.command import copy_of_demo, refusal, runtime_command


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return copy_of_demo(tmp_path / "model")


def header_of(weights: Path) -> tuple[dict[str, dict[str, object]], bytes]:
    """A safetensors file as its header and the rest."""
    content = weights.read_bytes()
    (size,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + size]), content[8 + size :]


def write_weights(weights: Path, header: dict[str, dict[str, object]], rest: bytes) -> None:
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    weights.write_bytes(struct.pack("<Q", len(encoded)) + encoded + rest)


def test_help_and_version_answer_without_loading_jax() -> None:
    for arguments in (("--help",), ("up", "--help"), ("version",)):
        done = runtime_command(*arguments, PYTHONPROFILEIMPORTTIME="1")
        assert done.returncode == 0
        assert not [line for line in done.stderr.splitlines() if line.endswith(("| jax", "| numpy", "| rich"))]
    assert done.stdout == f"runtime {__version__}\n"


def test_help_lists_every_flag_with_its_default() -> None:
    text = runtime_command("up", "--help").stdout
    assert "Traceback" not in text
    for flag in ("--topology", "--page-size", "--drain-timeout SECONDS", "--served-model-name"):
        assert flag in text
    assert text.count("default") >= 20


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("serve",), "unknown command 'serve'; allowed: up, bench, version"),
        (("up", "--bogus", "1"), "unknown flag --bogus '1'"),
        (("up", "--port", "99999"), "--port '99999': allowed: a whole number from 0 to 65535"),
        (("up", "--page-size", "32", "--chunked-prefill-size", "48"), "--page-size 32"),
        (("up", "--tp-size", "4"), "tensor parallel slices are not available yet"),
        (("up", "--topology", "prefill=1"), "prefill and decode go together"),
        (("up", "--model", "someone/some-model"), "--model 'someone/some-model': no such folder"),
        (("up", "--context-length", "999999"), "--context-length 999999: allowed: at most the model's 4096"),
        (("up", "--host", "no.such.host.invalid"), "--host 'no.such.host.invalid'"),
        (("version", "now"), "unknown argument 'now'"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_line(arguments: tuple[str, ...], told: str) -> None:
    assert told in refusal(*arguments)


def test_a_busy_port_is_refused_before_anything_is_loaded() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        line = refusal("up", "--port", str(port))
    assert f"--port {port} on 127.0.0.1" in line
    assert "allowed: a free port" in line


def test_more_slices_than_devices_are_refused() -> None:
    line = refusal("up", "--port", "0", "--topology", "prefill=2,decode=2",
                   XLA_FLAGS="--xla_force_host_platform_device_count=3")  # fmt: skip
    assert "needs 4 devices" in line
    assert "at most the 3 cpu devices" in line
    assert "needs 1001 devices" in refusal("up", "--port", "0", "--topology", "prefill=1000,decode=1")


def test_a_device_kind_that_contradicts_jax_platforms_is_refused() -> None:
    assert "--device tpu: JAX_PLATFORMS is 'cpu'" in refusal("up", "--port", "0", "--device", "tpu")


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_missing_file_is_named(folder: Path, missing: str) -> None:
    (folder / missing).unlink()
    named = "safetensors" if missing.endswith("safetensors") else missing
    assert named in refusal("up", "--port", "0", "--model", str(folder))


def test_an_unsupported_architecture_is_named(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["architectures"] = ["GPT2LMHeadModel"]
    (folder / "config.json").write_text(json.dumps(config))
    line = refusal("up", "--port", "0", "--model", str(folder))
    assert "GPT2LMHeadModel" in line
    assert "Qwen2ForCausalLM" in line


def test_a_broken_config_is_named(folder: Path) -> None:
    (folder / "config.json").write_text("{")
    assert "config.json" in refusal("up", "--port", "0", "--model", str(folder))


def test_a_missing_shard_is_named(folder: Path) -> None:
    header, _ = header_of(folder / "model.safetensors")
    names = [name for name in header if name != "__metadata__"]
    places = dict.fromkeys(names, "model-00001-of-00002.safetensors") | {names[-1]: "model-00002-of-00002.safetensors"}
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    index = {"metadata": {}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "model-00002-of-00002.safetensors" in refusal("up", "--port", "0", "--model", str(folder))


def test_a_truncated_weights_file_is_named(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    assert "model.safetensors" in refusal("up", "--port", "0", "--model", str(folder))


def test_missing_unexpected_and_misshapen_weights_are_listed_together(folder: Path) -> None:
    header, rest = header_of(folder / "model.safetensors")
    header["model.layers.0.mystery.weight"] = header.pop("model.layers.0.mlp.up_proj.weight")
    shape = header["model.norm.weight"]["shape"]
    assert isinstance(shape, list)
    header["model.norm.weight"]["shape"] = [1, *shape]
    write_weights(folder / "model.safetensors", header, rest)
    line = refusal("up", "--port", "0", "--model", str(folder))
    for name in ("model.layers.0.mlp.up_proj.weight", "model.layers.0.mystery.weight", "model.norm.weight"):
        assert name in line
