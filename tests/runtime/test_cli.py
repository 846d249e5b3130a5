"""The command line, as a user meets it: every mistake is one line on standard error and exit code 2."""

import contextlib
import json
import os
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from runtime import __version__, devices
from runtime.cli import main
from runtime.cli.console import Report
from runtime.cli.server import address_of, bind
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


def test_a_hub_model_that_cannot_be_had_is_one_line_and_quick(tmp_path: Path) -> None:
    line = refusal("up", "--model", "someone/some-model", HF_HUB_OFFLINE="1", HF_HOME=str(tmp_path))
    assert "--model 'someone/some-model': no such folder, not whole in the Hugging Face cache" in line
    assert "HF_HUB_OFFLINE forbids to download it; allowed: a model folder, or a hub id ORG/NAME" in line


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("serve",), "unknown command 'serve'; allowed: up, compile, bench, version"),
        (("up", "--bogus", "1"), "unknown flag --bogus '1'"),
        (("up", "--port", "99999"), "--port '99999': allowed: a whole number from 0 to 65535"),
        (("up", "--page-size", "32", "--chunked-prefill-size", "48"), "--page-size 32"),
        (("up", "--tp-size", "3"), "--tp-size 3: 3 devices per slice do not divide the model's 4 query heads"),
        (("up", "--topology", "prefill=1,decode=1x3"), "'prefill=1,decode=1x3': 3 devices per slice do not divide"),
        (("up", "--topology", "prefill=1"), "prefill and decode go together"),
        (("up", "--model", "no/such/folder"), "--model 'no/such/folder': no such folder, and not a hub id; allowed:"),
        (("up", "--config", "none.toml"), "--config 'none.toml': No such file or directory; allowed: a readable TOML"),
        (("up", "--model", "no/such/folder", "--print-config"), "--model 'no/such/folder': no such folder"),
        (("up", "--context-length", "999999"), "--context-length 999999: allowed: at most the model's 4096"),
        (("up", "--host", "no.such.host.invalid"), "--host 'no.such.host.invalid'"),
        (("version", "now"), "unknown argument 'now'"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_line(arguments: tuple[str, ...], told: str) -> None:
    assert told in refusal(*arguments)


def test_a_compile_cache_that_cannot_be_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    line = refusal("up", "--port", "0", JAX_COMPILATION_CACHE_DIR=str(tmp_path / "file" / "below"))
    assert f"JAX_COMPILATION_CACHE_DIR: cannot make the folder {tmp_path / 'file' / 'below'}" in line
    assert "allowed: a folder" in line


def test_a_busy_port_is_refused_before_anything_is_loaded() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        line = refusal("up", "--port", str(port))
    assert f"--port {port} on 127.0.0.1" in line
    assert "allowed: a free port" in line


@pytest.mark.parametrize(("host", "url"), [("127.0.0.1", "127.0.0.1"), ("0.0.0.0", "127.0.0.1")])
def test_host_and_port_are_what_is_listened_on(host: str, url: str) -> None:
    with bind(host, 0) as picked:
        port = picked.getsockname()[1]
        assert picked.getsockname()[0] == host
        assert address_of(picked) == f"http://{url}:{port}"
    with bind(host, port) as chosen:
        assert chosen.getsockname()[1] == port


@pytest.mark.parametrize(
    ("flags", "environment", "told"),
    [
        ("--chunked-prefill-size 24", {}, "--chunked-prefill-size 24 with --page-size 16: allowed: a chunk that"),
        ("--topology prefill=65,decode=1", {}, "needs 66 devices; allowed: at most 64 virtual ones on a CPU"),
        (
            "--topology prefill=2,decode=2",
            {"XLA_FLAGS": "--xla_force_host_platform_device_count=3"},
            "needs 4 devices, allowed: at most the 3 cpu devices",
        ),
        ("--topology prefill=1000000000,decode=1", {}, "with P, D, N, TP from 1 to 4096"),
        pytest.param(
            "--device tpu",
            {"JAX_PLATFORMS": ""},
            "--device tpu: this machine shows no tpu or jax has no plugin for it",
            marks=pytest.mark.skipif(devices._is_there("tpu"), reason="there is one"),
        ),
        ("--device tpu", {}, "--device tpu: JAX_PLATFORMS is 'cpu'"),
    ],
)
def test_what_needs_no_jax_is_refused_before_the_port_is_open(
    flags: str, environment: dict[str, str], told: str
) -> None:
    done = runtime_command("up", "--port", "0", *flags.split(), **environment)
    assert done.returncode == 2
    assert done.stdout == ""  # "Listening on" would be there
    (line,) = done.stderr.splitlines()
    assert line.startswith("runtime up: ")
    assert told in line


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ("--bogus 1", "unknown flag --bogus 1; allowed: the flags and values that `runtime bench --help` lists"),
        ("--context", "--context: expected one argument; allowed: the flags and values that"),
        ("--repeats 0", "--repeats: '0': allowed: a whole number from 1 to 1000"),
        (f"--repeats {'9' * 5000}", "allowed: a whole number from 1 to 1000"),
    ],
)
def test_a_mistake_in_the_flags_of_the_benchmark_says_what_is_allowed(
    flags: str, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", *flags.split()]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("runtime bench: ")
    assert told in line


@contextlib.contextmanager
def unread_stdout() -> Iterator[None]:
    """Standard output is a pipe that nobody reads any more."""
    reading, writing = os.pipe()
    with os.fdopen(writing, "w") as stream, pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdout", stream)
        os.close(reading)
        yield


@pytest.mark.parametrize("terminal", [False, True])
def test_a_report_that_nobody_reads_goes_nowhere(terminal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if terminal:
        monkeypatch.setenv("FORCE_COLOR", "1")
    with unread_stdout():
        report = Report()
        assert report.is_terminal is terminal
        report.line("Listening")
        report.table([("name", "value")])
        with report.progress("loading", "bytes") as advance:
            advance(1, 2)
            advance(2, 2)
        report.line("Serving")


def test_a_process_without_standard_output_reports_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    Report().line("Listening")


def test_a_shutdown_that_hangs_ends_with_one_line_and_code_1() -> None:
    code = (
        "import time; from runtime.cli.signals import leave_after; leave_after(0.1, 1, 'not stopped'); time.sleep(60)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=50, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "not stopped\n")


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
