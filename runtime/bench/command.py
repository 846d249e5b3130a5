"""The command line of the benchmark."""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

import msgspec

from runtime.bench.shapes import SHAPES, named_shape
from runtime.devices import choose_platform, find_devices
from runtime.errors import UsageError
from runtime.model_config import ModelConfig, load_model_config
from runtime.topology import parse_topology

MAX_PREFILL_TOKENS = 1 << 16
PLAIN_WIDTH = 160
"""Columns of the tables where there is no terminal to fit them to."""

DTYPES = ("bfloat16", "float32")


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
    model, name = _model(flags)
    platform = choose_platform(flags.device, parse_topology("mixed=1"))
    device = find_devices(platform)[0]

    import jax
    from rich.console import Console

    from runtime.bench.machine import measure_machine
    from runtime.bench.products import time_products
    from runtime.bench.report import Report, print_report, write_json
    from runtime.bench.steps import PASSTHROUGH, make_engine, time_decode, time_prefill
    from runtime.compile_cache import enable_compile_cache
    from runtime.steps import PAGED_ATTENTION
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
    parser.add_argument(
        "--batches", type=_counts(1024), default=[1, 4, 16], help="decode rows, comma separated (default: 1,4,16)"
    )
    parser.add_argument(
        "--tokens",
        type=_counts(MAX_PREFILL_TOKENS),
        default=[32, 64, 128, 256],
        help="prefill tokens, comma separated (default: 32,64,128,256)",
    )
    parser.add_argument(
        "--context", type=_count(1 << 20), default=512, help="tokens that decode rows hold (default: 512)"
    )
    parser.add_argument("--repeats", type=_count(1000), default=10, help="measured calls of each step (default: 10)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write everything here")
    return parser


def _count(most: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not text.isdecimal() or len(text) > len(str(most)) or not 1 <= int(text) <= most:
            raise argparse.ArgumentTypeError(f"{text!r}: allowed: a whole number from 1 to {most}")
        return int(text)

    return parse


def _counts(most: int) -> Callable[[str], list[int]]:
    parse = _count(most)
    return lambda text: [parse(part) for part in text.split(",")]
