"""Settings: what flags mean together, before anything is loaded."""

import pytest

from runtime.cli.flags import parse_up
from runtime.errors import UsageError
from runtime.settings import Settings

REFERENCE = (
    "--model-path DIR --trust-remote-code --tp-size=1 --device=tpu --mem-fraction-static=0.8 "
    "--chunked-prefill-size=2048 --download-dir=/tmp --dtype=bfloat16 --max-running-requests 256 "
    "--skip-server-warmup --page-size=128 --disable-radix-cache --use-sort-for-toppk-minp"
)


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
        ("--device npu", "--device 'npu': allowed: auto, cpu, tpu, gpu"),
        ("--log-level loud", "--log-level 'loud': allowed: debug, info, warning, error"),
        ("--max-running-requests 0", "--max-running-requests '0': allowed: a whole number of requests from 1"),
        ("--num-pages 1", "--num-pages '1': allowed: a whole number of pages from 2"),
        ("--model=", "--model or --model-path '': allowed: a model folder"),
        ("--prot 80", "unknown flag --prot '80': did you mean --port? allowed: "),
        ("--enable-magic", "unknown flag --enable-magic: "),
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
