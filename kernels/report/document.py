"""The report as one document: what is written as JSON, and what of it is read back."""

import importlib.metadata
from pathlib import Path

import msgspec

from kernels.report.chip import Chip
from kernels.report.figures import DecodeFigures, PrefillFigures
from kernels.report.moves import MoveFigures


class Refused(msgspec.Struct, frozen=True, kw_only=True):
    """A program that the compiler did not take."""

    kernel: str
    shape: str
    reason: str


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """All figures of one target. They are the compiler's estimates."""

    jax: str
    libtpu: str
    chip: Chip
    decode: tuple[DecodeFigures, ...] = ()
    prefill: tuple[PrefillFigures, ...] = ()
    moves: tuple[MoveFigures, ...] = ()
    refused: tuple[Refused, ...] = ()


def empty_report(chip: Chip) -> Report:
    """A report of this process's compiler without figures yet."""
    return Report(jax=importlib.metadata.version("jax"), libtpu=importlib.metadata.version("libtpu"), chip=chip)


def write_json(report: Report, path: Path) -> None:
    """The whole report."""
    path.write_bytes(msgspec.json.format(msgspec.json.encode(report), indent=2) + b"\n")


def read_json(path: Path, like: Report) -> Report:
    """A report of the same compiler and chip as `like`. Raises ValueError if it is not one."""
    try:
        report = msgspec.json.decode(path.read_bytes(), type=Report)
    except msgspec.MsgspecError as error:
        raise ValueError(f"{path} is not a report: {error}") from error
    for name in ("jax", "libtpu", "chip"):
        if getattr(report, name) != getattr(like, name):
            raise ValueError(f"{path} is of {name} {getattr(report, name)}, this run of {getattr(like, name)}")
    return report
