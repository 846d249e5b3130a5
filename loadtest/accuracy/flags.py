"""The flags of `loadtest eval`. Defaults are the reference page's, but for the demo model's token limit."""

import os
from pathlib import Path

import msgspec

from loadtest.flags import Parser, non_negative, typed
from loadtest.units import parse_count, parse_duration_s, parse_fraction

_DESCRIPTION = """\
Asks an OpenAI-compatible server every problem of a file, compares the boxed answers with the expected ones by
math-verify, and prints Pass@1 per level in the form of the reference page."""

_EPILOG = """\
exit codes: 0 done; 1 a request failed; 2 wrong flags, no server, no data; 130 after Ctrl-C. After 1 and 130 the answers
are in --output, and the same command goes on."""


class EvalFlags(msgspec.Struct, frozen=True, kw_only=True):
    """As parsed."""

    url: str
    data: Path | None
    limit: int | None
    model: str | None
    api_key: str | None
    temperature: float
    top_p: float
    max_tokens: int
    seed: int
    repeats: int
    batch: int
    timeout: float
    compare_timeout: float
    output: Path | None
    label: str | None
    quiet: bool


def eval_parser() -> Parser:
    """The command line."""
    parser = Parser(prog="loadtest eval", allow_abbrev=False, description=_DESCRIPTION, epilog=_EPILOG)
    parser.add_argument("url", metavar="URL", help="the server, such as http://127.0.0.1:8000")
    _add_data(parser)
    _add_sampling(parser)
    _add_requests(parser)
    parser.add_argument("--quiet", action="store_true", help="no progress on standard error")
    return parser


def _add_data(parser: Parser) -> None:
    group = parser.add_argument_group("data")
    group.add_argument(
        "--data",
        type=Path,
        metavar="PATH",
        help="JSONL in MATH-500's layout, or a folder with one such file (default: the demo model's 500 problems)",
    )
    group.add_argument("--limit", type=typed(parse_count), metavar="N", help="only the first N problems")
    group.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help="answers as .jsonl, to go on from; the result is beside it (default: loadtest-eval-DATE-TIME.jsonl)",
    )
    group.add_argument("--label", metavar="TEXT", help="what the scores are called, such as bfloat16")


def _add_sampling(parser: Parser) -> None:
    group = parser.add_argument_group("sampling")
    group.add_argument("--temperature", type=typed(non_negative), default=0.6, metavar="T", help="default: 0.6")
    group.add_argument("--top-p", type=typed(parse_fraction), default=0.95, metavar="P", help="default: 0.95")
    group.add_argument(
        "--max-tokens", type=typed(parse_count), default=1024, metavar="N", help="of an answer (default: 1024)"
    )
    group.add_argument(
        "--repeats", type=typed(parse_count), default=1, metavar="K", help="how often all is asked (default: 1)"
    )
    group.add_argument(
        "--seed", type=typed(parse_count, 0), default=42, metavar="N", help="of the first repeat (default: 42)"
    )


def _add_requests(parser: Parser) -> None:
    group = parser.add_argument_group("requests")
    group.add_argument("--model", metavar="NAME", help="default: the only one that the server serves")
    group.add_argument(
        "--api-key", metavar="KEY", default=os.environ.get("OPENAI_API_KEY"), help="default: OPENAI_API_KEY's value"
    )
    group.add_argument("--batch", type=typed(parse_count), default=64, metavar="N", help="at a time (default: 64)")
    group.add_argument(
        "--timeout", type=typed(parse_duration_s), default=7200.0, metavar="TIME", help="for an answer (default: 2h)"
    )
    group.add_argument(
        "--compare-timeout",
        type=typed(parse_duration_s),
        default=10.0,
        metavar="TIME",
        help="for the comparison of one answer (default: 10s)",
    )
