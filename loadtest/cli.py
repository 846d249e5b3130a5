"""The `loadtest` command: finds the subcommand; a user's mistake becomes one line and exit code 2."""

import sys
from collections.abc import Callable, Sequence

from loadtest.errors import UsageError

USAGE_EXIT_CODE = 2

_HELP = """\
loadtest: measures any OpenAI-compatible server over HTTP

usage: loadtest COMMAND [FLAGS]

  run URL         send a load, show it live, judge it by service level objectives, and keep every request's record
  sweep URL       find the highest rate at which enough requests are inside the objectives
  compare A B...  send one load to several servers or topologies in turn, and say which serves more of it
  eval URL        ask a server the problems of a file, and print how many it solves
  report FILE...  make one HTML page of saved runs, sweeps and comparisons

`loadtest COMMAND --help` lists a command's flags with their units and defaults.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code, which its help explains."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        sys.stdout.write(_HELP)
        return 0
    try:
        return _command(arguments[0])(arguments[1:])
    except UsageError as error:
        sys.stderr.write(f"loadtest {arguments[0]}: {' '.join(str(error).split())}\n")
        return USAGE_EXIT_CODE
    except BrokenPipeError:  # `loadtest run --help | head -1`
        return 1
    except KeyboardInterrupt:  # before the first request: there is nothing to save
        return 130


def _command(name: str) -> Callable[[Sequence[str]], int]:
    commands: dict[str, Callable[[Sequence[str]], int]] = {
        "run": _run,
        "sweep": _sweep,
        "compare": _compare,
        "eval": _eval,
        "report": _report,
    }
    if name not in commands:
        raise UsageError(f"unknown command {name!r}; allowed: {', '.join(commands)}")
    return commands[name]


def _run(argv: Sequence[str]) -> int:
    from loadtest.run import run

    return run(argv)


def _sweep(argv: Sequence[str]) -> int:
    from loadtest.sweep import sweep

    return sweep(argv)


def _compare(argv: Sequence[str]) -> int:
    from loadtest.compare import compare

    return compare(argv)


def _eval(argv: Sequence[str]) -> int:
    from loadtest.eval import evaluate

    return evaluate(argv)


def _report(argv: Sequence[str]) -> int:
    from loadtest.report import report

    return report(argv)
