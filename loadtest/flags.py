"""The flags of `run` and `sweep`, with units and defaults, and their mistakes as one line each."""

import argparse
import math
import os
from collections.abc import Callable, Sequence
from typing import Any, NoReturn, TypeVar

import msgspec

from loadtest.datasets import ALLOWED, DEFAULT_COUNT
from loadtest.datasets.shape import HIGHEST_TOKEN, LOWEST_TOKEN, Shape
from loadtest.errors import UsageError
from loadtest.settings import CLOSED_COUNT, DEFAULT_CONCURRENCY
from loadtest.slo import EXAMPLE, parse_slo
from loadtest.timing import HEADER
from loadtest.units import parse_count, parse_duration_s, parse_fraction, parse_positive
from loadtest.validity import RULE

T = TypeVar("T")


class Parser(argparse.ArgumentParser):
    """argparse, with mistakes raised as one line."""

    def error(self, message: str) -> NoReturn:
        """argparse's."""
        told = message.replace("unrecognized arguments:", "unknown flag").removeprefix("argument ")
        if "allowed" not in told:
            told += f"; allowed: what `{self.prog} --help` lists"
        raise UsageError(told)


def typed(parse: Callable[..., T], *arguments: object) -> Callable[[str], T]:
    """A parser of text whose UsageError argparse shows as it is."""

    def convert(text: str) -> T:
        try:
            return parse(text, *arguments)
        except UsageError as error:
            raise argparse.ArgumentTypeError(str(error).removeprefix("--slo ")) from None

    return convert


def add_load_flags(parser: argparse.ArgumentParser) -> None:
    """Everything that says what is sent, and to whom."""
    parser.add_argument("url", metavar="URL", help="the server, such as http://127.0.0.1:8000")
    add_request_flags(parser)


def add_request_flags(parser: argparse.ArgumentParser) -> None:
    """Everything that says what is sent."""
    _add_server(parser.add_argument_group("server"))
    _add_data(parser.add_argument_group("data"))
    _add_limits(parser.add_argument_group("limits"))


def add_arrival_flags(parser: argparse.ArgumentParser) -> None:
    """When it is sent; without any of them the loop is closed."""
    group = parser.add_argument_group("arrivals")
    group.add_argument("--rate", type=typed(parse_positive), metavar="R", help="open loop: requests per second, or inf")
    group.add_argument(
        "--ramp", type=typed(_ramp), metavar="A:B", help="open loop whose rate goes from A to B per second"
    )
    group.add_argument(
        "--concurrency",
        type=typed(parse_count),
        metavar="N",
        help=f"closed loop: requests on their way at a time (default, without another loop: {DEFAULT_CONCURRENCY})",
    )
    _add_gaps(group, ("poisson", "gamma", "constant", "trace"))
    group.add_argument(
        "--speed", type=typed(_finite), default=1.0, metavar="X", help="trace: times as fast as recorded (default: 1)"
    )


def add_gap_flags(parser: argparse.ArgumentParser) -> None:
    """The kinds of arrivals that have a rate to search."""
    _add_gaps(parser.add_argument_group("arrivals"), ("poisson", "gamma", "constant"))


def add_timing_flag(parser: argparse.ArgumentParser) -> None:
    """`--timing`."""
    parser.add_argument(
        "--timing",
        action="store_true",
        help=f"ask for each request's stage times (header {HEADER}), which this project's server tells",
    )


def _add_gaps(group: "argparse._ArgumentGroup", kinds: Sequence[str]) -> None:
    replay = "; trace replays the data's timestamps" if "trace" in kinds else ""
    group.add_argument(
        "--arrivals", choices=kinds, default="poisson", help=f"gaps of an open loop{replay} (default: poisson)"
    )
    group.add_argument(
        "--burstiness",
        type=typed(parse_positive),
        metavar="K",
        help="gamma's shape: below 1 in bursts, 1 is poisson, inf is constant",
    )


def _add_server(group: "argparse._ArgumentGroup") -> None:
    group.add_argument("--model", metavar="NAME", help="default: the only one that the server serves")
    group.add_argument(
        "--api", choices=("completions", "chat"), help="default: chat for chats, completions for the rest"
    )
    group.add_argument(
        "--api-key", metavar="KEY", default=os.environ.get("OPENAI_API_KEY"), help="default: OPENAI_API_KEY's value"
    )
    group.add_argument("--temperature", type=typed(non_negative), default=0.0, metavar="T", help="default: 0, greedy")
    group.add_argument(
        "--ignore-eos",
        action=argparse.BooleanOptionalAction,
        help="answers as long as asked for (default: for data with exact lengths)",
    )
    group.add_argument(
        "--extra-body", type=typed(_object), default={}, metavar="JSON", help="fields added to every request"
    )
    group.add_argument(
        "--usage",
        choices=("final", "each", "none"),
        default="final",
        help="token counts asked for: at the end, in each chunk, or none, for servers that refuse (default: final)",
    )


def _add_data(group: "argparse._ArgumentGroup") -> None:
    group.add_argument("--data", default="random", metavar="SET", help=f"{ALLOWED} (default: random)")
    group.add_argument(
        "--requests",
        type=typed(parse_count),
        metavar="N",
        help=f"measured requests (default: the file's, or {DEFAULT_COUNT}; {CLOSED_COUNT} at most within a --duration)",
    )
    group.add_argument(
        "--duration", type=typed(parse_duration_s), metavar="TIME", help="send for so long, such as 60s, instead"
    )
    group.add_argument(
        "--warmup", type=typed(parse_count, 0), default=4, metavar="N", help="excluded requests before (default: 4)"
    )
    group.add_argument(
        "--seed", type=typed(parse_count, 0), default=0, metavar="N", help="of prompts and arrivals (default: 0)"
    )
    group.add_argument(
        "--input-tokens",
        type=typed(parse_count),
        default=256,
        metavar="N",
        help="random: prompt; prefix: behind it (default: 256)",
    )
    group.add_argument(
        "--output-tokens",
        type=typed(parse_count),
        metavar="N",
        help=f"tokens of an answer, at most, where the file names none (default: {Shape.DEFAULT_OUTPUT_TOKENS})",
    )
    group.add_argument(
        "--spread",
        type=typed(parse_fraction),
        default=0.0,
        metavar="F",
        help="lengths vary evenly by this fraction (default: 0)",
    )
    group.add_argument(
        "--prefix-tokens",
        type=typed(parse_count),
        default=1024,
        metavar="N",
        help="prefix: shared part (default: 1024)",
    )
    group.add_argument(
        "--groups", type=typed(parse_count), default=8, metavar="N", help="prefix: different shared parts (default: 8)"
    )
    group.add_argument(
        "--zipf",
        type=typed(non_negative),
        default=1.0,
        metavar="S",
        help="prefix: weight of group g is g^-S (default: 1; 0 is even)",
    )
    group.add_argument(
        "--token-ids",
        type=typed(_token_ids),
        default=(LOWEST_TOKEN, HIGHEST_TOKEN),
        metavar="A:B",
        help=f"drawn prompts' ids (default: {LOWEST_TOKEN}:{HIGHEST_TOKEN}, which every vocabulary has)",
    )


def _add_limits(group: "argparse._ArgumentGroup") -> None:
    group.add_argument(
        "--timeout",
        type=typed(parse_duration_s),
        default=600.0,
        metavar="TIME",
        help="for a whole answer (default: 600s)",
    )
    group.add_argument(
        "--stall-timeout",
        type=typed(parse_duration_s),
        default=60.0,
        metavar="TIME",
        help="with nothing coming (default: 60s)",
    )
    group.add_argument(
        "--cancel",
        type=typed(parse_fraction),
        default=0.0,
        metavar="F",
        help="fraction of requests that the client leaves (default: 0)",
    )
    group.add_argument(
        "--cancel-after",
        type=typed(parse_duration_s),
        default=1.0,
        metavar="TIME",
        help="after they were sent (default: 1s)",
    )
    group.add_argument(
        "--max-lag",
        type=typed(parse_duration_s),
        metavar="TIME",
        help=f"the client's own (default: {RULE})".replace("%", "%%"),
    )


def add_slo_flag(parser: argparse.ArgumentParser, is_required: bool = False) -> None:
    """`--slo`."""
    parser.add_argument(
        "--slo",
        type=typed(parse_slo),
        default=(),
        required=is_required,
        metavar="LIMITS",
        help=f"objectives, such as {EXAMPLE}; exit code 1 when one is missed. error_rate=0 holds unless named",
    )


def _ramp(text: str) -> tuple[float, float]:
    first, colon, last = text.partition(":")
    if not colon:
        raise UsageError(f"{text!r}: allowed: two rates, such as 1:10")
    return _finite(first), _finite(last)


def _token_ids(text: str) -> tuple[int, int]:
    lowest, colon, highest = text.partition(":")
    if not colon or parse_count(lowest, 0) > parse_count(highest, 0):
        raise UsageError(f"{text!r}: allowed: the lowest and the highest id, such as 10:250")
    return int(lowest), int(highest)


def _finite(text: str) -> float:
    value = parse_positive(text)
    if math.isinf(value):
        raise UsageError(f"{text!r}: allowed: a number above 0")
    return value


def non_negative(text: str) -> float:
    """Zero, or a number above it."""
    return 0.0 if text in ("0", "0.0") else _finite(text)


def _object(text: str) -> dict[str, Any]:
    try:
        return msgspec.json.decode(text, type=dict[str, Any])
    except msgspec.DecodeError:
        raise UsageError(f"{text!r}: allowed: a JSON object, such as '{{\"top_p\": 0.9}}'") from None
