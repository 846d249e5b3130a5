"""The flags of `loadtest compare`, and what they mean together."""

import math
import shlex
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec

from loadtest.connection import parse_address
from loadtest.environment import without_secrets
from loadtest.errors import UsageError
from loadtest.flags import Parser, add_gap_flags, add_request_flags, typed
from loadtest.results import check_writable
from loadtest.servers import Launch
from loadtest.settings import LoadSettings
from loadtest.slo import Objective, parse_slo
from loadtest.units import parse_count, parse_duration_s, parse_fraction, parse_positive

DEFAULT_COMMAND = "runtime up"
DEFAULT_DURATION_S = 30.0

_DESCRIPTION = """\
Sends the same requests at the same times to two or more servers in alternation, round after round, and says which has
the higher goodput (answers per second that are inside every limit of --slo), with a 95 % interval, rate by rate. Each
server is the URL of one that runs, or a topology such as prefill=2,decode=2 or mixed=4, which is started here and ended
afterwards. The first is A, the second B; of more than two, each is compared with the last."""

_EPILOG = """\
exit codes: 0 done; 1 a server answered nothing, or ended; 2 wrong flags, no server, no data; 3 runs are invalid even
when repeated, because this client was the bottleneck, and are left out; 130 after Ctrl-C. All but 2 save what was
measured.
What follows a lone -- goes to every server that is started: loadtest compare ... -- --model DIR"""


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """What a command line asks for; `urls` and `topologies` are by the server's name."""

    names: tuple[str, ...]
    urls: dict[str, str]
    topologies: dict[str, str]
    rates: tuple[float, ...]
    rounds: int
    slos: tuple[tuple[Objective, ...], ...]
    attainment: float
    launch: Launch
    out: Path
    markdown: Path | None
    quiet: bool
    settings: LoadSettings

    def shown(self) -> dict[str, Any]:
        """For the result's file."""
        load = {name: value for name, value in self.settings.shown().items() if name not in ("url", "rate", "timing")}
        own = {"servers": self.names, "rates": self.rates, "rounds": self.rounds}
        command = without_secrets([*self.launch.command, *self.launch.arguments])
        return own | {"server_command": command if self.topologies else None} | load


def read_options(argv: Sequence[str]) -> Options:
    """Raises UsageError."""
    own, server_arguments = _split(argv)
    flags = vars(_parser().parse_args(own))
    names = unique_names(flags.pop("servers"))
    urls = {name: text for name, text in names.items() if "://" in text}
    topologies = {name: text for name, text in names.items() if name not in urls}
    if server_arguments and not topologies:
        raise UsageError("--: arguments for servers that are started; allowed: with a topology to start")
    out = flags.pop("out") or Path(f"loadtest-compare-{datetime.now():%Y%m%d-%H%M%S}.json")
    launch = Launch(
        command=_command(flags.pop("server_command")),
        arguments=server_arguments,
        timeout_s=flags.pop("start_timeout"),
        log_stem=out.with_suffix(""),
    )
    own_flags = {name: flags.pop(name) for name in ("rates", "rounds", "attainment", "markdown", "quiet")}
    options = Options(
        names=tuple(names),
        urls=urls,
        topologies=topologies,
        slos=tuple(flags.pop("slo")),
        launch=launch,
        out=out,
        settings=_settings(flags, own_flags["rates"][0]),
        **own_flags,
    )
    _check(options)
    return options


def _settings(flags: dict[str, Any], rate: float) -> LoadSettings:
    """The load, for any server. Each run has a rate of its own."""
    if flags["requests"] is None and flags["duration"] is None:
        flags["duration"] = DEFAULT_DURATION_S
    return msgspec.convert(flags | {"url": "", "rate": rate, "timing": True}, LoadSettings)


def _check(options: Options) -> None:
    """What can be wrong before any server is asked."""
    for slo in options.slos:
        _check_slo(slo)
    if options.attainment in (0, 1):
        raise UsageError("--attainment: allowed: above 0 and below 1")
    for url in options.urls.values():
        parse_address(url)
    options.settings.check()
    check_writable(options.out)
    if options.markdown is not None:
        check_writable(options.markdown, "--markdown")


def unique_names(servers: Sequence[str]) -> dict[str, str]:
    """Each server's name, which is how it was given; the second of two that are the same is numbered."""
    if len(servers) < 2:
        raise UsageError("servers: allowed: two or more, each a URL or a topology such as mixed=4")
    names = dict[str, str]()
    for index, text in enumerate(servers):
        count = list(servers[:index]).count(text)
        names[f"{text} ({count + 1})" if count else text] = text
    return names


def parse_rates(text: str) -> tuple[float, ...]:
    """Of `2,4,8`, ascending. Raises UsageError."""
    rates = tuple(sorted(parse_positive(part.strip()) for part in text.split(",")))
    if math.inf in rates or len(set(rates)) < len(rates):
        raise UsageError(f"{text!r}: allowed: different finite rates per second, such as 2,4,8")
    return rates


def _split(argv: Sequence[str]) -> tuple[list[str], tuple[str, ...]]:
    """What is for this command, and what follows a lone `--`."""
    if "--" not in argv:
        return list(argv), ()
    index = list(argv).index("--")
    return list(argv[:index]), tuple(argv[index + 1 :])


def _command(text: str | None) -> tuple[str, ...]:
    """The default is the command of this environment, whether or not it is on the path."""
    if text is None:
        return (sys.executable, "-m", *DEFAULT_COMMAND.split())
    try:
        words = tuple(shlex.split(text))
    except ValueError as error:
        raise UsageError(f"--server-command {text!r}: {error}") from None
    if not words:
        raise UsageError(f"--server-command {text!r}: allowed: a command, such as {DEFAULT_COMMAND!r}")
    return words


def _check_slo(slo: Sequence[Objective]) -> None:
    """A request on its own has no rate and no percentile of gaps."""
    for objective in slo:
        if objective.kind != "latency" or objective.latency == "itl":
            raise UsageError(
                f"--slo {objective.text!r}: allowed here: limits that one request can meet, of TTFT, TPOT and E2E, "
                "such as ttft_p90=500ms,tpot_p90=50ms"
            )


def _parser() -> Parser:
    parser = Parser(prog="loadtest compare", allow_abbrev=False, description=_DESCRIPTION, epilog=_EPILOG)
    parser.add_argument("servers", nargs="+", metavar="SERVER", help="the URL of a running server, or a topology")
    group = parser.add_argument_group("comparison")
    group.add_argument(
        "--rates", type=typed(parse_rates), required=True, metavar="R,R", help="requests per second, such as 2,4,8"
    )
    group.add_argument(
        "--rounds", type=typed(parse_count), default=3, metavar="N", help="runs per server and rate (default: 3)"
    )
    group.add_argument(
        "--slo",
        type=typed(parse_slo),
        action="append",
        required=True,
        metavar="LIMITS",
        help="limits that a request has to meet, such as ttft_p90=500ms,tpot_p90=50ms, whatever the percentile; given "
        "again, the same requests are judged by each",
    )
    group.add_argument(
        "--attainment",
        type=typed(parse_fraction),
        default=0.9,
        metavar="F",
        help="fraction inside that makes a rate held (default: 90%%)",
    )
    _add_servers(parser)
    add_request_flags(parser)
    add_gap_flags(parser)
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="result as JSON (default: loadtest-compare-DATE-TIME.json)"
    )
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="the tables as Markdown too")
    parser.add_argument("--quiet", action="store_true", help="no progress on standard error")
    return parser


def _add_servers(parser: Parser) -> None:
    group = parser.add_argument_group("servers that are started")
    group.add_argument(
        "--server-command",
        metavar="COMMAND",
        help=f"what --topology, --host and --port are added to (default: {DEFAULT_COMMAND}, of this environment)",
    )
    group.add_argument(
        "--start-timeout",
        type=typed(parse_duration_s),
        default=600.0,
        metavar="TIME",
        help="until /health says that it is ready (default: 600s)",
    )
