"""The command line of the benchmark."""

import argparse
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NoReturn

import msgspec

from runtime.bench.grid import TABLE_DEFAULTS, write_step_times
from runtime.bench.shapes import SHAPES, named_shape
from runtime.devices import choose_platform, find_devices
from runtime.errors import UsageError
from runtime.model_config import ModelConfig, load_model_config
from runtime.topology import parse_topology

MAX_PREFILL_TOKENS = 1 << 16
PLAIN_WIDTH = 160
"""Columns of the tables where there is no terminal to fit them to."""

DTYPES = ("bfloat16", "float32")
STEP_DEFAULTS: Mapping[str, Any] = MappingProxyType(
    {"batches": [1, 4, 16], "tokens": [32, 64, 128, 256], "context": 512, "repeats": 10, "json": None}
)
"""Of flags that do not go with --step-times, but for `repeats`, which has another default there."""


class _Parser(argparse.ArgumentParser):
    """argparse, with mistakes raised as one line."""

    def error(self, message: str) -> NoReturn:
        told = message.replace("unrecognized arguments:", "unknown flag").removeprefix("argument ")
        if "allowed:" not in told:
            told += "; allowed: the flags and values that `runtime bench --help` lists"
        raise UsageError(told)


def run(argv: Sequence[str] | None = None) -> int:
    """Parses, measures, prints. Raises UsageError."""
    flags = _parser().parse_args(argv)
    _check_kind(flags)
    model, name = _model(flags)
    _fill_in(flags)
    if flags.step_times is not None:
        return write_step_times(flags, model, name)
    platform = choose_platform(flags.device, parse_topology("mixed=1"))
    device = find_devices(platform)[0]

    import jax
    from rich.console import Console

    from runtime.bench.machine import measure_machine
    from runtime.bench.products import time_products
    from runtime.bench.report import Report, print_report, write_json
    from runtime.bench.steps import PASSTHROUGH, make_engine, time_decode, time_prefill
    from runtime.compile_cache import enable_compile_cache
    from runtime.step_config import PAGED_ATTENTION
    from runtime.weights import bench_params, load_weights

    enable_compile_cache()
    console = Console(width=None if sys.stdout.isatty() else PLAIN_WIDTH)
    machine = measure_machine(model, device, flags.repeats)
    params = (
        bench_params(model, model.dtype, device)
        if flags.model is None
        else load_weights(flags.model, model, model.dtype, device)
    )
    engine, ablated = (
        make_engine(
            model,
            params,
            device,
            num_rows=max(flags.batches),
            chunk_tokens=max(flags.tokens),
            max_context_tokens=max(flags.context + flags.repeats + 2, *flags.tokens),
            attention=attention,
        )
        for attention in (PAGED_ATTENTION, PASSTHROUGH)
    )
    report = Report(
        model=name,
        dtype=model.dtype,
        device=device.device_kind,
        jax_version=jax.__version__,
        cores=len(os.sched_getaffinity(0)),
        machine=machine,
        prefill=time_prefill(engine, flags.tokens, flags.repeats),
        decode=[
            time_decode(
                engine,
                ablated,
                model,
                machine,
                time_products(model, params, batch, flags.repeats),
                batch,
                flags.context,
                flags.repeats,
            )
            for batch in flags.batches
        ],
    )
    print_report(report, console)
    if flags.json is not None:
        write_json(report, flags.json)
    return 0


def _check_kind(flags: argparse.Namespace) -> None:
    """Raises UsageError for flags of the one kind of measurement with the other."""
    is_table = flags.step_times is not None
    others, own = (STEP_DEFAULTS, TABLE_DEFAULTS) if is_table else (TABLE_DEFAULTS, STEP_DEFAULTS)
    for field in others.keys() - own.keys():
        if getattr(flags, field) is not None:
            allowed = "without" if is_table else "with"
            raise UsageError(f"--{field.replace('_', '-')}: allowed: {allowed} --step-times")


def _fill_in(flags: argparse.Namespace) -> None:
    for field, value in (STEP_DEFAULTS if flags.step_times is None else TABLE_DEFAULTS).items():
        if getattr(flags, field) is None:
            setattr(flags, field, value)


def _model(flags: argparse.Namespace) -> tuple[ModelConfig, str]:
    if flags.model is None:
        model, name = named_shape(flags.shape), flags.shape
    else:
        model, name = load_model_config(flags.model), flags.model.name
    if model.experts is not None:
        # How many experts a step reads depends on its tokens, so it has no bound to be compared with.
        raise UsageError(f"--model {str(flags.model)!r}: allowed: a model without experts")
    return (msgspec.structs.replace(model, dtype=flags.dtype) if flags.dtype else model), name


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="runtime bench", allow_abbrev=False, description="Time the engine's steps, without HTTP.")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--model", type=Path, metavar="DIR", help="a model folder")
    source.add_argument(
        "--shape", default="r1-1.5b", help=f"a shape with random weights: {', '.join(SHAPES)} (default: %(default)s)"
    )
    parser.add_argument("--dtype", choices=DTYPES, help="default: the model's")
    parser.add_argument("--device", choices=("auto", "cpu", "tpu", "gpu"), default="auto")
    parser.add_argument("--batches", type=_counts(1024), help="decode rows, comma separated (default: 1,4,16)")
    parser.add_argument(
        "--tokens",
        type=_counts(MAX_PREFILL_TOKENS),
        help="prefill tokens, comma separated (default: 32,64,128,256)",
    )
    parser.add_argument("--context", type=_count(1 << 20), help="tokens that decode rows hold (default: 512)")
    parser.add_argument(
        "--repeats", type=_count(1000), help="measured calls of each step (default: 10, with --step-times 5)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write everything here")
    _add_table_flags(parser)
    return parser


def _add_table_flags(parser: argparse.ArgumentParser) -> None:
    table = parser.add_argument_group("a step-time table for emulated slices, instead of the above")
    table.add_argument("--step-times", type=Path, metavar="FILE", help="measure a table and write it here")
    table.add_argument(
        "--starts",
        type=_counts(1 << 20),
        help="tokens before a prefill step's own, comma separated, 0 always among them (default: 0,512,1024,2048)",
    )
    table.add_argument(
        "--contexts",
        type=_counts(1 << 20),
        help="tokens that decode rows hold, comma separated (default: 128,512,1024,2048,4096)",
    )
    table.add_argument("--max-context", type=_count(1 << 20), help="longest prompt and answer together (default: 4096)")
    for flag, most, what in (
        ("--page-size", 1024, "tokens per KV page"),
        ("--chunked-prefill-size", MAX_PREFILL_TOKENS, "tokens of the largest prefill step"),
        ("--max-running-requests", 4096, "rows of the largest decode step"),
    ):
        table.add_argument(flag, type=_count(most), help=f"{what} (default: as runtime up's)")


def _count(most: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not text.isdecimal() or len(text) > len(str(most)) or not 1 <= int(text) <= most:
            raise argparse.ArgumentTypeError(f"{text!r}: allowed: a whole number from 1 to {most}")
        return int(text)

    return parse


def _counts(most: int) -> Callable[[str], list[int]]:
    parse = _count(most)
    return lambda text: [parse(part) for part in text.split(",")]
