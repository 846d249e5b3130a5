"""The flags of `runtime up`: names, units, defaults and help. Parsing imports neither jax nor the server."""

import argparse
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any, NoReturn

from runtime.cli.values import integer, number, one_of, power_of_two, text
from runtime.errors import UsageError
from runtime.settings import DEMO_NAME, MAX_PAGE_SIZE, MIN_PAGE_SIZE, Settings

_MANY = 1 << 24
_DAY_S = 86400.0
_EPILOG = """\
examples:
  runtime up                                                 the demo model on whatever device there is
  runtime up --model DIR --topology prefill=2,decode=2       two prefill slices feed two decode slices
  runtime up --model DIR --topology mixed=1 --dtype float32  prefill and decode on one slice

Compiled programs are kept for the next start in $JAX_COMPILATION_CACHE_DIR (default: the user's cache).
"""


class _Parser(argparse.ArgumentParser):
    """argparse, with mistakes raised as one line."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(message.removeprefix("argument "))


def parse_up(argv: Sequence[str]) -> Settings | None:
    """Settings from the command line, or None when the flags asked for help, which is then printed."""
    parser = up_parser()
    if "-h" in argv or "--help" in argv:
        parser.print_help()
        return None
    try:
        values, unknown = parser.parse_known_args(list(argv))
    except argparse.ArgumentError as error:
        raise UsageError(_told(error)) from None
    if unknown:
        raise UsageError(_unknown(parser, *unknown[:2]))
    chosen = {name: value for name, value in vars(values).items() if name in Settings.__struct_fields__}
    chosen["api_keys"] = tuple(values.api_keys or ())
    return Settings(**chosen)


def up_parser() -> argparse.ArgumentParser:
    """The parser of `runtime up`."""
    parser = _Parser(
        prog="runtime up",
        usage="runtime up [FLAGS]",
        description="Load a model and serve the OpenAI API.",
        epilog=_EPILOG,
        add_help=False,
        allow_abbrev=False,
        exit_on_error=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _model(parser.add_argument_group("model"))
    _placement(parser.add_argument_group("devices and slices"))
    _memory(parser.add_argument_group("memory and batching"))
    _sampling(parser.add_argument_group("sampling"))
    _server(parser.add_argument_group("server"))
    return parser


def _model(group: Any) -> None:
    group.add_argument(
        "--model", "--model-path", dest="model", metavar="DIR", type=text("a model folder"),
        help="folder with config.json, *.safetensors and the tokenizer (default: the embedded demo model)",
    )  # fmt: skip
    group.add_argument(
        "--served-model-name", metavar="NAME", type=text(),
        help=f"name that clients send as `model` (default: the folder's name; {DEMO_NAME} for the demo)",
    )  # fmt: skip
    group.add_argument(
        "--dtype", default="auto", metavar="TYPE", type=one_of("auto", "bfloat16", "float32"),
        help="weights, KV and arithmetic: auto (the checkpoint's), bfloat16, or float32 with float32 matmuls",
    )  # fmt: skip
    group.add_argument(
        "--context-length", metavar="TOKENS", type=integer(1, _MANY, unit="tokens"),
        help="longest prompt and answer together (default: the model's)",
    )  # fmt: skip
    group.add_argument(
        "--trust-remote-code", action="store_true",
        help="accepted for compatibility: no code is ever loaded from a model folder",
    )  # fmt: skip
    group.add_argument(
        "--download-dir", metavar="DIR",
        help="accepted for compatibility: models are local folders, nothing is downloaded",
    )  # fmt: skip


def _placement(group: Any) -> None:
    group.add_argument(
        "--topology", metavar="SPEC", type=text("prefill=P[xTP],decode=D[xTP] or mixed=N[xTP]"),
        help="slices: prefill=P,decode=D or mixed=N, each number with xTP for slices of TP devices"
        " (default: prefill=1,decode=1, or mixed=1 where there are too few devices)",
    )  # fmt: skip
    group.add_argument(
        "--tp-size", default=1, metavar="N", type=integer(1, 1024, unit="devices"),
        help="devices per slice of roles whose TP --topology does not give (default: 1)",
    )  # fmt: skip
    group.add_argument(
        "--device", default="auto", metavar="KIND", type=one_of("auto", "cpu", "tpu", "gpu"),
        help="auto, cpu, tpu or gpu; a CPU is split into as many virtual devices as needed (default: auto)",
    )  # fmt: skip


def _memory(group: Any) -> None:
    group.add_argument(
        "--page-size", metavar="TOKENS", type=power_of_two(MIN_PAGE_SIZE, MAX_PAGE_SIZE),
        help=f"tokens per KV page, a power of two from {MIN_PAGE_SIZE} to {MAX_PAGE_SIZE}"
        " (default: 16 on cpu, else 128)",
    )  # fmt: skip
    group.add_argument(
        "--num-pages", metavar="PAGES", type=integer(2, _MANY, unit="pages"),
        help="KV pages of each slice (default: what --mem-fraction-static leaves)",
    )  # fmt: skip
    group.add_argument(
        "--mem-fraction-static", metavar="F", type=number(0, 0.99),
        help="share of a device's memory for weights and KV (default: 0.88); on cpu the share of the free"
        " memory for the KV of all slices (default: at most 1 GiB each)",
    )  # fmt: skip
    group.add_argument(
        "--chunked-prefill-size", metavar="TOKENS", type=integer(MIN_PAGE_SIZE, _MANY, unit="tokens"),
        help="prompt tokens per prefill step, a multiple of the page (default: 256 on cpu, else 2048)",
    )  # fmt: skip
    group.add_argument(
        "--max-running-requests", metavar="N", type=integer(1, 4096, unit="requests"),
        help="choices that one decode or mixed slice runs at once (default: 32 on cpu, else 256)",
    )  # fmt: skip
    group.add_argument(
        "--decode-reserve-tokens", default=512, metavar="TOKENS", type=integer(1, _MANY, unit="tokens"),
        help="output tokens for which KV pages are reserved before a request starts (default: 512)",
    )  # fmt: skip
    group.add_argument(
        "--disable-radix-cache", action="store_true",
        help="no KV is shared between requests (already so: there is no prefix cache yet)",
    )  # fmt: skip


def _sampling(group: Any) -> None:
    group.add_argument(
        "--random-seed", metavar="SEED", type=integer(0, 2**63 - 1),
        help="where the seeds of requests without one are drawn from (default: the operating system)",
    )  # fmt: skip
    group.add_argument(
        "--use-sort-for-toppk-minp", action="store_true",
        help="top-k, top-p and min-p with a full sort of the vocabulary; the result is the same without",
    )  # fmt: skip


def _server(group: Any) -> None:
    group.add_argument("--host", default="127.0.0.1", metavar="ADDRESS", type=text("an address"),
                       help="address to listen on (default: 127.0.0.1)")  # fmt: skip
    group.add_argument("--port", default=8000, metavar="PORT", type=integer(0, 65535),
                       help="port to listen on; 0 picks a free one (default: 8000)")  # fmt: skip
    group.add_argument("--api-key", dest="api_keys", action="append", metavar="KEY", type=text(),
                       help="key that clients must send; can be repeated (default: none)")  # fmt: skip
    group.add_argument("--max-queued-requests", default=1024, metavar="N", type=integer(1, _MANY),
                       help="requests that may wait before new ones get a 429 (default: 1024)")  # fmt: skip
    for name, dest, default, what in (
        ("--queue-timeout", "queue_timeout_s", 600, "seconds a request may wait for its first token"),
        ("--progress-timeout", "progress_timeout_s", 300, "seconds a running request may go without a token"),
        (
            "--drain-timeout",
            "drain_timeout_s",
            30,
            "seconds that running requests get after SIGTERM or Ctrl-C",
        ),
    ):
        group.add_argument(
            name, dest=dest, default=float(default), metavar="SECONDS",
            type=number(0, _DAY_S, unit="seconds"), help=f"{what} (default: {default})",
        )  # fmt: skip
    group.add_argument("--skip-server-warmup", action="store_true",
                       help="accepted for compatibility: no warm-up request goes over HTTP;"
                       " programs are always compiled before the first request")  # fmt: skip
    group.add_argument("--log-level", default="warning", metavar="LEVEL",
                       type=one_of("debug", "info", "warning", "error"),
                       help="debug, info, warning or error (default: warning)")  # fmt: skip
    group.add_argument("-h", "--help", action="store_true", help="show this text")


def _told(error: argparse.ArgumentError) -> str:
    name = (error.argument_name or "").replace("/", " or ")
    if error.message.startswith("expected one argument"):
        return f"{name}: no value given; allowed: one value, see `runtime up --help`"
    if error.message.startswith("ignored explicit argument"):
        return f"{name} {error.message.split()[-1]}: allowed: no value"
    return f"{name} {error.message}"


def _unknown(parser: argparse.ArgumentParser, given: str, following: str = "-") -> str:
    if not given.startswith("-"):
        return f"unexpected argument {given!r}; allowed: flags, see `runtime up --help`"
    flag, _, value = given.partition("=")
    if not value and not following.startswith("-"):
        value = following
    known = [option for action in parser._actions for option in action.option_strings]
    near = get_close_matches(flag, known, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    shown = f"{flag} {value!r}" if value else flag
    return f"unknown flag {shown}: {hint}allowed: the flags that `runtime up --help` lists"
