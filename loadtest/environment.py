"""Where and with what a run was made, so that somebody else can make it again."""

import os
import platform
import shlex
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

import msgspec

PACKAGES = ("runtime", "h11", "httpx", "math-verify", "msgspec", "rich")


class Environment(msgspec.Struct, frozen=True, kw_only=True):
    """Of the client. Load averages are over one minute, before the run."""

    date: str
    command: str
    python: str
    system: str
    processor: str
    cores: int
    load_average: float
    versions: dict[str, str]


def read_environment(argv: Sequence[str]) -> Environment:
    """Of this process, started as `loadtest` with `argv`. An API key is left out."""
    return Environment(
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        command=shlex.join(["loadtest", *without_secrets(argv)]),
        python=platform.python_version(),
        system=f"{platform.system()} {platform.release()}",
        processor=_processor(),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        load_average=round(os.getloadavg()[0], 2) if sys.platform != "win32" else 0.0,
        versions={name: version for name in PACKAGES if (version := _version(name)) is not None},
    )


def without_secrets(argv: Sequence[str]) -> list[str]:
    """Arguments as they may be shown."""
    shown, is_secret = list[str](), False
    for argument in argv:
        if is_secret:
            argument = "***"
        elif argument.startswith("--api-key="):
            argument = "--api-key=***"
        is_secret = argument == "--api-key"
        shown.append(argument)
    return shown


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
