"""The command line of `runtime compile`: the flags of `runtime up`, as a launch line has them, and two more."""

import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec

from kernels.aot import GENERATIONS, Target, parse_target
from runtime.cli.flag import Flag
from runtime.cli.flag_table import FLAGS
from runtime.cli.flags import read_options_and
from runtime.cli.help_text import group_text
from runtime.cli.values import text
from runtime.errors import UsageError
from runtime.known_models import KNOWN_MODELS
from runtime.settings import REAL_ENGINE, Settings

_GROUP = "this command"
_USED_GROUPS = ("devices and slices", "memory and batching")
_TARGET = Flag(
    names=("--target",), field=None, group=_GROUP, metavar="CHIPS", value=text("chips to compile for, as v6e:2x2"),
    default="v6e:2x2",
    effect=f"TPU to compile for, GENERATION:SHAPE; generations {', '.join(GENERATIONS)}",
)  # fmt: skip
_JSON = Flag(
    names=("--json",), field=None, group=_GROUP, metavar="FILE", value=text("a file to write"), default="none",
    effect="also write everything that was found to this file",
)  # fmt: skip
_OWN = (_TARGET, _JSON)

_INTRO = f"""\
usage: runtime compile [FLAGS]

Compile every program of a topology for a TPU that need not be there, and say whether weights, KV pool and temporaries
fit its memory. Takes the flags of `runtime up`: put `compile` in the place of `up` in a launch line to try it. Those
that decide what is compiled are listed below. The sizes are the TPU compiler's; nothing is run or measured.

--model takes a folder or a hub id as `runtime up` does (weights are not read), or the name of a well-known shape:
  {", ".join(KNOWN_MODELS)}

exit code: 0 all compiles and fits, 1 something does not, 2 the flags are wrong
"""
_EPILOG = """\
example:
  runtime compile --target v6e:2x2 --topology prefill=2,decode=2 --model deepseek-r1-distill-qwen-1.5b
"""


class Flags(msgspec.Struct, frozen=True, kw_only=True):
    """What was asked for."""

    settings: Settings
    target: Target
    json: Path | None


def parse_compile(arguments: Sequence[str]) -> Flags | None:
    """The flags' values, or None when help was asked for, which is then printed. Raises UsageError."""
    if "-h" in arguments or "--help" in arguments:
        sys.stdout.write(help_text())
        return None
    options, own = read_options_and(_OWN, arguments, "compile")
    if options.prints:
        raise UsageError("--print-config: allowed: with `runtime up`")
    settings = options.settings
    if settings.table_file is not None:
        raise UsageError(f"--engine {settings.engine!r}: allowed: {REAL_ENGINE}, or with `runtime up`")
    if settings.device not in ("auto", "tpu"):
        raise UsageError(f"--device {settings.device}: allowed: auto, tpu")
    settings.sizes_for("tpu")
    settings.check_attention_backend("tpu")
    try:
        target = parse_target(own.get(_TARGET, _TARGET.default))
    except ValueError as error:
        raise UsageError(f"--{error}") from None
    path = own.get(_JSON)
    return Flags(settings=settings, target=target, json=None if path is None else _writable(path))


def help_text() -> str:
    """What the command does, its own flags and those of `runtime up` that matter to it."""
    groups = [group_text(group, FLAGS) for group in _USED_GROUPS]
    return "\n".join([_INTRO, group_text(_GROUP, _OWN), *groups, _EPILOG])


def _writable(path: str) -> Path:
    """Found out now, not after minutes of compiling."""
    if not Path(path).resolve().parent.is_dir() or Path(path).is_dir():
        raise UsageError(f"--json {path!r}: allowed: a file in a folder that exists")
    return Path(path)
