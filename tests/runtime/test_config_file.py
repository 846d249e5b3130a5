"""Settings from a TOML file: the same values and checks as flags, which win over it."""

from pathlib import Path

import pytest

from runtime.cli.flags import Options, read_options
from runtime.errors import UsageError
from runtime.settings import Settings


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "up.toml"


def with_file(path: Path, content: str, *flags: str) -> Options:
    path.write_text(content, encoding="utf-8")
    return read_options(["--config", str(path), *flags])


def test_it_may_hold_every_kind_of_setting(path: Path) -> None:
    content = """
        model-path = "somewhere"
        topology = "prefill=2,decode=1"
        page_size = 32
        mem-fraction-static = 0.5
        drain-timeout = 7
        skip-server-warmup = true
        disable-radix-cache = false
        api-key = ["one", "two"]
    """
    assert with_file(path, content).settings == Settings(
        model="somewhere",
        topology="prefill=2,decode=1",
        page_size=32,
        mem_fraction_static=0.5,
        drain_timeout_s=7.0,
        skip_server_warmup=True,
        api_keys=("one", "two"),
    )


def test_flags_win_over_it_and_origins_say_who_said_what(path: Path) -> None:
    options = with_file(path, 'port = 1\nhost = "::1"\napi-key = "theirs"\n', "--port=2", "--api-key", "mine")
    assert options.settings == Settings(port=2, host="::1", api_keys=("mine",))
    assert options.origins == {"port": "flag --port", "host": f"file {path}", "api_keys": "flag --api-key"}


def test_flags_and_file_are_checked_together(path: Path) -> None:
    with pytest.raises(UsageError, match="--chunked-prefill-size 48 with --page-size 32: .* multiple of the page"):
        with_file(path, "page-size = 32", "--chunked-prefill-size=48")


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("port = 65536", "port 65536: allowed: a whole number from 0 to 65535"),
        ('port = "80"', "port '80': allowed: a whole number from 0 to 65535"),
        ("port = true", "port True: allowed: a whole number from 0 to 65535"),
        ("port = 80.0", "port 80.0: allowed: a whole number from 0 to 65535"),
        ("page_size = 24", "page_size 24: allowed: a power of two from 8 to 1024"),
        ("chunked-prefill-size = -2", "chunked-prefill-size -2: allowed: a whole number of tokens from 8 to"),
        ("mem-fraction-static = nan", "mem-fraction-static nan: allowed: a number above 0 and at most 0.99"),
        ("mem-fraction-static = true", "mem-fraction-static True: allowed: a number above 0"),
        ("drain-timeout = 1" + "0" * 400, "drain-timeout 1000"),
        ("model = 3", "model 3: allowed: a model folder, or a hub id"),
        ('download-dir = "a\\u0000b"', r"download-dir 'a\x00b': allowed: a folder"),
        ('dtype = "fp8"', "dtype 'fp8': allowed: auto, bfloat16, float32"),
        ('device = ["cpu"]', "device ['cpu']: allowed: auto, cpu, tpu, gpu"),
        ("skip-server-warmup = 1", "skip-server-warmup 1: allowed: no value after the flag, true or false in a file"),
        ('skip-server-warmup = "true"', "skip-server-warmup 'true': allowed: no value after the flag, true or false"),
        ("api-key = [1]", "api-key: allowed: printable ASCII characters without blanks; in a file also a list"),
        ("prot = 80", "unknown key 'prot' (80): did you mean port? allowed: the flags that"),
        ("[server]\nport = 80", "unknown key 'server' (a table): allowed: the flags that"),
        ('config = "other.toml"', "unknown key 'config' ('other.toml')"),
        ("api_kye = 'hush'", "unknown key 'api_kye' (not shown): did you mean api-key?"),
        ('model = "a"\nmodel-path = "b"', "model and model-path are the same setting; allowed: one of them"),
        ("page-size = 8\npage_size = 16", "page-size and page_size are the same setting; allowed: one of them"),
    ],
)
def test_a_mistake_is_told_with_file_key_value_and_what_is_allowed(path: Path, content: str, told: str) -> None:
    with pytest.raises(UsageError) as refusal:
        with_file(path, content)
    message = str(refusal.value)
    assert message.startswith(f"{path}: {told}")
    assert "allowed" in message
    assert "\n" not in message
    assert len(message) < 500


@pytest.mark.parametrize("content", [b"port =", b"port = 1\nport = 2", b"model = '\xff'"])
def test_what_is_no_toml_is_refused_with_the_files_name(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(UsageError) as refusal:
        read_options(["--config", str(path)])
    message = str(refusal.value)
    assert message.startswith(f"--config '{path}': ")
    assert message.endswith("; allowed: a TOML file in UTF-8")
    assert "\n" not in message


@pytest.mark.parametrize("name", [".", "none.toml", "~no-such-user/up.toml"])
def test_what_cannot_be_read_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match=f"^--config '{name}': .+; allowed: a readable TOML file"):
        read_options(["--config", name])
