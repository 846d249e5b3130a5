"""The `runtime` command: finds the subcommand; an operator's mistake becomes one line and exit code 2.

Nothing heavy is imported before the flags are read: `runtime up --help` answers at once.
"""

import sys
from collections.abc import Callable, Sequence

from runtime import __version__
from runtime.errors import UsageError

USAGE_EXIT_CODE = 2

_HELP = f"""\
runtime {__version__}: serves language models with prefill and decode on different accelerator slices

usage: runtime COMMAND [FLAGS]

  up        load a model and serve the OpenAI API (without --model: the embedded demo model)
  compile   compile all programs of a topology for a TPU that need not be there, and say whether they fit
  bench     time the engine's prefill and decode steps, without HTTP; measure step-time tables
  version   print the version

`runtime COMMAND --help` lists a command's flags with their units and defaults.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code; a process that must end at once exits with its code itself.

    0: done, or a server that a signal stopped while it loaded or after it drained.
    1: the server failed, its shutdown took too long, a program does not compile or fit, or nobody reads the output of a
       command that only prints.
    2: the operator asked for something impossible; one line on standard error says what and what is allowed.
    128+n: ended at once by signal n: the second SIGTERM (143) or Ctrl-C (130) of a server, the first Ctrl-C otherwise.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        sys.stdout.write(_HELP)
        return 0
    try:
        return _command(arguments[0])(arguments[1:])
    except UsageError as error:
        sys.stderr.write(f"runtime {arguments[0]}: {_one_line(str(error))}\n")
        return USAGE_EXIT_CODE
    except BrokenPipeError:  # `runtime up --help | head -1`
        return 1
    except KeyboardInterrupt:  # while still importing; a server handles its signals itself
        return 130


def _command(name: str) -> Callable[[Sequence[str]], int]:
    commands: dict[str, Callable[[Sequence[str]], int]] = {
        "up": _up,
        "compile": _compile,
        "bench": _bench,
        "version": _version,
    }
    if name in ("-V", "--version"):
        return _version
    if name not in commands:
        raise UsageError(f"unknown command {name!r}; allowed: {', '.join(commands)}")
    return commands[name]


def _up(argv: Sequence[str]) -> int:
    from runtime.cli.flags import parse_up

    settings = parse_up(argv)
    if settings is None:
        return 0
    from runtime.cli.up import up

    return up(settings)


def _compile(argv: Sequence[str]) -> int:
    from runtime.compile.command import run

    return run(argv)


def _bench(argv: Sequence[str]) -> int:
    from runtime.bench import main as bench

    return bench(argv)


def _version(argv: Sequence[str]) -> int:
    if argv:
        raise UsageError(f"unknown argument {argv[0]!r}; allowed: none")
    sys.stdout.write(f"runtime {__version__}\n")
    return 0


def _one_line(text: str) -> str:
    return "; ".join(part.strip() for part in text.splitlines() if part.strip())
