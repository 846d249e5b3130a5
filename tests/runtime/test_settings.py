"""Settings: what flags mean together, before anything is loaded."""

import pytest

from runtime.cli.flag import Flag
from runtime.cli.flag_table import SETTINGS_FLAGS
from runtime.cli.flags import parse_up
from runtime.errors import UsageError
from runtime.settings import Settings

REFERENCE = (
    "--model-path DIR --trust-remote-code --tp-size=1 --device=tpu --mem-fraction-static=0.8 "
    "--chunked-prefill-size=2048 --download-dir=/tmp --dtype=bfloat16 --max-running-requests 256 "
    "--skip-server-warmup --page-size=128 --disable-radix-cache --use-sort-for-toppk-minp"
)


WHOLE_NUMBERS = """
    context-length page-size num-pages chunked-prefill-size max-running-requests decode-reserve-tokens random-seed port
    max-queued-requests queue-timeout progress-timeout drain-timeout response-store-size response-store-bytes
    response-store-age max-answers
"""
VALUES: dict[str, tuple[str, object]] = {
    "dtype": ("float32", "float32"),
    "attention-backend": ("xla", "xla"),
    "tool-call-parser": ("mistral", "mistral"),
    "reasoning-parser": ("think", "think"),
    "device": ("cpu", "cpu"),
    "topology": ("prefill=1,decode=2", "prefill=1,decode=2"),
    "tp-size": ("1", 1),
    "engine": ("jax", "jax"),
    "emulation-stretch": ("1", 1.0),
    "mem-fraction-static": ("0.5", 0.5),
    "api-key": ("secret", ("secret",)),
    "chaos": ("decode.0:crash@step=5", "decode.0:crash@step=5"),
    "log-level": ("error", "error"),
    "log-format": ("json", "json"),
    "max-body-bytes": ("2048", 2048),
    "cors-origin": ("http://localhost:3000", ("http://localhost:3000",)),
    "otlp-traces-endpoint": ("http://localhost:4318/v1/traces", "http://localhost:4318/v1/traces"),
} | dict.fromkeys(WHOLE_NUMBERS.split(), ("64", 64))
"""What the command line says and what becomes of it; a text for every other flag."""


def parsed(line: str) -> Settings:
    settings = parse_up(line.split())
    assert settings is not None
    return settings


def test_without_flags_the_demo_model_is_served_on_loopback() -> None:
    settings = parsed("")
    assert (settings.model, settings.topology, settings.host, settings.port) == (None, None, "127.0.0.1", 8000)
    assert settings == Settings()


def test_the_reference_command_line_is_understood() -> None:
    settings = parsed(REFERENCE)
    assert (settings.model, settings.device, settings.dtype) == ("DIR", "tpu", "bfloat16")
    assert (settings.mem_fraction_static, settings.use_sort_for_toppk_minp) == (0.8, True)
    sizes = settings.sizes_for("tpu")
    assert (sizes.page_size, sizes.chunked_prefill_size, sizes.max_running_requests) == (128, 2048, 256)
    assert (settings.download_dir, settings.trust_remote_code) == ("/tmp", True)
    assert (settings.skip_server_warmup, settings.disable_radix_cache) == (True, True)


@pytest.mark.parametrize("flag", SETTINGS_FLAGS, ids=lambda flag: flag.key)
def test_a_value_follows_after_a_blank_or_an_equals_sign(flag: Flag) -> None:
    assert flag.field is not None
    if flag.is_switch:
        assert getattr(parsed(flag.name), flag.field) is True
        return
    text, value = VALUES.get(flag.key, ("x", "x"))
    extra = " --model x/y" if flag.key == "revision" else ""
    for name in flag.names:
        for form in (f"{name} {text}", f"{name}={text}"):
            assert getattr(parsed(form + extra), flag.field) == value


def test_of_a_flag_that_is_given_twice_the_last_one_holds() -> None:
    assert parsed("--port 1 --model a --port=2 --model-path b") == Settings(port=2, model="b")


def test_a_chunk_of_minus_one_holds_the_whole_context() -> None:
    sizes = parsed("--chunked-prefill-size=-1 --page-size 32").sizes_for("cpu")
    assert (sizes.page_size, sizes.chunked_prefill_size) == (32, None)
    assert [sizes.chunk_tokens(context) for context in (31, 64, 4095)] == [32, 64, 4096]
    assert parsed("--chunked-prefill-size -1").sizes_for("cpu").page_size == 16


def test_api_keys_add_up() -> None:
    assert parsed("--api-key a --api-key b").api_keys == ("a", "b")


@pytest.mark.parametrize(
    ("line", "page_size", "chunk"),
    [
        ("", 16, 256),
        ("--page-size 1024", 1024, 1024),
        ("--chunked-prefill-size 8", 8, 8),
        ("--page-size 32 --chunked-prefill-size 96", 32, 96),
    ],
)
def test_what_is_not_given_fits_what_is(line: str, page_size: int, chunk: int) -> None:
    sizes = parsed(line).sizes_for("cpu")
    assert (sizes.page_size, sizes.chunked_prefill_size) == (page_size, chunk)


def test_a_page_that_does_not_divide_the_chunk_is_refused_with_both_values() -> None:
    with pytest.raises(UsageError, match=r"--chunked-prefill-size 48 with --page-size 32: .*multiple"):
        parsed("--page-size 32 --chunked-prefill-size 48")
    with pytest.raises(UsageError, match=r"--chunked-prefill-size 100 with --page-size 16"):
        parsed("--chunked-prefill-size 100").sizes_for("cpu")


@pytest.mark.parametrize(
    ("line", "topology"),
    [
        ("--tp-size 2", "None"),
        ("--topology mixed=1x4", "mixed=1x4"),
        ("--topology prefill=2,decode=1x4 --tp-size 2", "prefill=2x2,decode=1x4"),
    ],
)
def test_tp_size_is_the_width_of_roles_that_name_none(line: str, topology: str) -> None:
    assert str(parsed(line).parsed_topology()) == topology


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("--port 65536", "--port '65536': allowed: a whole number from 0 to 65535"),
        ("--port eight", "--port 'eight': allowed: a whole number from 0 to 65535"),
        ("--port", "--port: no value given"),
        ("--page-size 24", "--page-size '24': allowed: a power of two from 8 to 1024"),
        ("--page-size 1", "--page-size '1': allowed: a power of two from 8 to 1024"),
        ("--mem-fraction-static 1.5", "--mem-fraction-static '1.5': allowed: a number above 0 and at most 0.99"),
        ("--mem-fraction-static nan", "--mem-fraction-static 'nan': allowed: a number above 0"),
        ("--drain-timeout -1", "--drain-timeout '-1': allowed: a number of seconds above 0"),
        ("--drain-timeout=-1", "--drain-timeout '-1': allowed: a number of seconds above 0"),
        ("--dtype fp8", "--dtype 'fp8': allowed: auto, bfloat16, float32"),
        ("--attention-backend cuda", "--attention-backend 'cuda': allowed: auto, pallas, pallas-interpret, xla"),
        ("--device npu", "--device 'npu': allowed: auto, cpu, tpu, gpu"),
        ("--log-level loud", "--log-level 'loud': allowed: debug, info, warning, error"),
        ("--max-running-requests 0", "--max-running-requests '0': allowed: a whole number of requests from 1"),
        ("--num-pages 1", "--num-pages '1': allowed: a whole number of pages from 2"),
        ("--model=", "--model or --model-path '': allowed: a model folder, or a hub id ORG/NAME"),
        ("--model-path --port 1", "--model or --model-path: no value given; allowed: a model folder"),
        ("--revision=", "--revision '': allowed: a branch, tag or commit"),
        ("--revision main", "--revision 'main' without --model: allowed: with a hub id"),
        ("--download-dir=", "--download-dir '': allowed: a folder"),
        ("--served-model-name=", "--served-model-name '': allowed: a text of at least one character"),
        ("--context-length 1", "--context-length '1': allowed: a whole number of tokens from 2 to"),
        ("--context-length 9e3", "--context-length '9e3': allowed: a whole number of tokens from 2 to"),
        ("--trust-remote-code=yes", "--trust-remote-code 'yes': allowed: no value"),
        ("--engine tpu", "--engine 'tpu': allowed: jax, emulated:FILE"),
        ("--engine emulated:", "--engine 'emulated:': allowed: jax, emulated:FILE"),
        ("--emulation-stretch 0", "--emulation-stretch '0': allowed: a number above 0"),
        ("--emulation-stretch 2", "--emulation-stretch 2 with --engine jax: allowed: with --engine emulated:FILE"),
        ("--admin-key=", "--admin-key: allowed: printable ASCII characters without blanks, or @FILE"),
        ("--chaos decode.0:crash", "--chaos 'decode.0:crash': allowed: crash@step=N or crash@chunk=N"),
        ("--topology=", "--topology '': allowed: prefill=P[xTP],decode=D[xTP] or mixed=N[xTP]"),
        ("--topology both=1", "--topology 'both=1': 'both=1' is not ROLE=COUNT[xTP]; allowed: prefill=P"),
        ("--tp-size 0", "--tp-size '0': allowed: a whole number of devices from 1 to 1024"),
        ("--chunked-prefill-size 0", "--chunked-prefill-size '0': allowed: a whole number of tokens from 8 to"),
        ("--chunked-prefill-size -2", "--chunked-prefill-size '-2': allowed: a whole number of tokens from 8 to"),
        ("--random-seed -1", "--random-seed '-1': allowed: a whole number from 0 to 9223372036854775807"),
        (f"--random-seed {'9' * 5000}", "--random-seed '9999"),
        ("--use-sort-for-toppk-minp=0", "--use-sort-for-toppk-minp '0': allowed: no value"),
        ("--skip-server-warmup=true", "--skip-server-warmup 'true': allowed: no value"),
        ("--skip-server-warmup true", "unexpected argument 'true'; allowed: flags"),
        ("--host=", "--host '': allowed: an address of this machine"),
        ("--api-key=", "--api-key: allowed: printable ASCII characters without blanks"),
        ("--prot 80", "unknown flag --prot '80': did you mean --port? allowed: "),
        ("--enable-magic", "unknown flag --enable-magic: "),
        ("--pages=3", "unknown flag --pages '3': "),
        ("-p 80", "unknown flag -p '80': "),
        ("--disable-radix-cache=1", "--disable-radix-cache '1': allowed: no value"),
        ("extra", "unexpected argument 'extra'"),
    ],
)
def test_a_bad_flag_is_told_with_its_value_and_what_is_allowed(line: str, told: str) -> None:
    with pytest.raises(UsageError) as refusal:
        parsed(line)
    message = str(refusal.value)
    assert message.startswith(told)
    assert "allowed" in message
    assert "\n" not in message
    assert len(message) < 500


@pytest.mark.parametrize("line", ["--api-key=hush\tdear", "--api-keys hushdear", "--api-kye=hushdear"])
def test_a_refused_key_is_not_repeated(line: str) -> None:
    with pytest.raises(UsageError) as refusal:
        parse_up(line.split(" "))
    assert "hush" not in str(refusal.value)
    assert "allowed" in str(refusal.value)
