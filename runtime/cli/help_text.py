"""The text of `runtime up --help`, and the parts that other commands share, made from the table of flags."""

import textwrap
from collections.abc import Iterator, Sequence

from runtime.cli.flag import Flag
from runtime.cli.flag_table import FLAGS, GROUPS

WIDTH = 110
_INDENT = 32
_INTRO = """\
usage: runtime up [FLAGS]

Load a model and serve the OpenAI API. A value follows its flag after a blank or an equals sign.
"""
_EPILOG = """\
examples:
  runtime up                                                 the demo model on whatever device there is
  runtime up --model DIR --topology prefill=2,decode=2       two prefill slices feed two decode slices
  runtime up --model DIR --topology mixed=1 --dtype float32  prefill and decode on one slice
  runtime up --config up.toml --print-config                 what is in force, and why

environment:
  JAX_COMPILATION_CACHE_DIR     folder where compiled programs are kept for the next start (default: the user's cache)
  JAX_PLATFORMS, XLA_FLAGS      as jax reads them; a platform named there is what --device auto takes
  HF_HOME, HF_HUB_CACHE         where hub models are looked for; HF_HUB_OFFLINE=1: nothing is downloaded
"""


def help_text() -> str:
    """All flags by group, with units, defaults and effects."""
    return "\n".join([_INTRO, *(group_text(group, FLAGS) for group in GROUPS), _EPILOG])


def group_text(group: str, flags: Sequence[Flag]) -> str:
    """Those of the flags that belong to one group."""
    lines = [f"{group}:"]
    for flag in flags:
        if flag.group == group:
            lines += _lines(flag)
    return "\n".join(lines) + "\n"


def _lines(flag: Flag) -> Iterator[str]:
    head = f"  {flag.usage}"
    about = f"{flag.effect} (default: {flag.default_text})"
    first, *others = textwrap.wrap(about, WIDTH - _INDENT, break_on_hyphens=False)
    if len(head) > _INDENT - 2:
        yield head
        yield " " * _INDENT + first
    else:
        yield f"{head:<{_INDENT}}{first}"
    yield from (" " * _INDENT + line for line in others)
