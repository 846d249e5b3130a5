"""`runtime up --print-config`: what is in force, from where, as a file that says the same again."""

import tomllib
from pathlib import Path

import pytest

from runtime.cli.flags import parse_up, read_options
from runtime.cli.print_config import config_in_force
from runtime.errors import UsageError
from tests.runtime.command import copy_of_demo, runtime_command


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.setenv("XLA_FLAGS", "")


def printed(*flags: str) -> str:
    return config_in_force(read_options(flags))


def origin(text: str, key: str) -> str:
    (line,) = [line for line in text.splitlines() if line.startswith((f"{key} = ", f"# {key}: "))]
    return line.rsplit("  # ", 1)[1]


def test_each_value_comes_with_its_origin(tmp_path: Path) -> None:
    file = tmp_path / "up.toml"
    file.write_text("max-running-requests = 8\n")
    text = printed("--config", str(file), "--port=9000", "--dtype", "auto")
    values = tomllib.loads(text)
    assert values["port"] == 9000
    assert origin(text, "port") == "flag --port"
    assert values["max-running-requests"] == 8
    assert origin(text, "max-running-requests") == f"file {file}"
    assert (values["page-size"], origin(text, "page-size")) == (16, "default on cpu")
    assert (values["chunked-prefill-size"], origin(text, "chunked-prefill-size")) == (256, "default on cpu")
    assert (values["device"], origin(text, "device")) == ("cpu", "environment JAX_PLATFORMS=cpu")
    assert (values["context-length"], origin(text, "context-length")) == (4096, "model")
    assert (values["served-model-name"], origin(text, "served-model-name")) == ("runtime-demo", "model")
    assert (values["dtype"], origin(text, "dtype")) == ("bfloat16", "model, as auto says: flag --dtype")
    assert (values["host"], origin(text, "host")) == ("127.0.0.1", "default")
    assert "random-seed" not in values
    assert origin(text, "random-seed") == "default"


def test_the_environment_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path))
    assert origin(printed(), "JAX_COMPILATION_CACHE_DIR") == "environment"
    assert f"# JAX_COMPILATION_CACHE_DIR: {tmp_path}" in printed()
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    assert origin(printed(), "JAX_COMPILATION_CACHE_DIR") == "default"


def test_what_is_printed_is_a_file_with_the_same_settings(tmp_path: Path) -> None:
    model = copy_of_demo(tmp_path / 'a "quoted" \\ model \u00e9 \U0001f600')
    flags = ("--model", str(model), "--chunked-prefill-size", "-1", "--skip-server-warmup", "--drain-timeout", "2.5")
    first = printed(*flags)
    file = tmp_path / "printed.toml"
    file.write_text(first, encoding="utf-8")
    again = read_options(["--config", str(file)])
    assert again.settings.model == str(model)
    assert (again.settings.chunked_prefill_size, again.settings.skip_server_warmup) == (-1, True)
    assert tomllib.loads(config_in_force(again)) == tomllib.loads(first)


def test_keys_are_counted_and_never_printed() -> None:
    text = printed("--api-key", "hush-hush", "--api-key", "dear", "--admin-key", "hush-a-bye")
    assert "hush" not in text
    assert "dear" not in text
    assert "# api-key: 2, not shown" in text
    assert "# admin-key: given, not shown" in text
    assert origin(text, "api-key") == "flag --api-key"


def test_a_hub_model_that_is_not_here_leaves_its_values_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    text = printed("--model", "someone/some-model")
    assert tomllib.loads(text)["served-model-name"] == "someone/some-model"
    assert "# context-length: the model's" in text


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ("--page-size 32 --chunked-prefill-size 48", "multiple of the page"),
        ("--context-length 5000", "allowed: at most the model's 4096 tokens"),
        ("--model no/such/folder", "no such folder"),
    ],
)
def test_what_could_not_be_served_is_refused(flags: str, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        parse_up(["--print-config", *flags.split()])


def test_the_command_prints_it_and_loads_nothing(tmp_path: Path) -> None:
    done = runtime_command("up", "--print-config", "--port", "1", JAX_COMPILATION_CACHE_DIR=str(tmp_path / "none"))
    assert (done.returncode, done.stderr) == (0, "")
    assert tomllib.loads(done.stdout)["port"] == 1
    assert not (tmp_path / "none").exists()
