"""`python -m runtime.bench.masks`: how much of the host's masks a decode step shows.

The rows write JSON under a grammar, over a large vocabulary of made-up words. Each round runs three kinds of steps in
turns, as a worker runs them: fused ones, of which the next is dispatched before the last is read; deferred ones without
masks, which cost the second program and the wait for what was sampled; and deferred ones with the grammar's masks,
which the host computes while the forward pass runs. What the last kind takes longer than the first is exposed.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import msgspec
import numpy as np

from runtime.bench.checkpoint import filled_tokenizer, write_tokenizer
from runtime.bench.shapes import SHAPES, named_shape
from runtime.constraints import Constraint, HostConstraints
from runtime.devices import choose_platform, find_devices
from runtime.engine import RowState, Sampled, Step, StepHandle
from runtime.errors import UsageError
from runtime.jax_engine import JaxEngine
from runtime.sampling_params import ConstraintSpec, SamplingParams
from runtime.settings import DeviceKind
from runtime.tokens import Tokenizer
from runtime.topology import parse_topology

VOCAB_SIZE = 151_936
LETTERS = "etaoinshrdlucmfwypvbgkjqxz"
SCHEMA: Mapping[str, Any] = {
    "type": "array",
    "minItems": 1_000_000,
    "items": {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 40},
            "count": {"type": "integer", "minimum": 0, "maximum": 99_999},
            "kind": {"enum": ["small", "large", "unknown"]},
            "tags": {"type": "array", "maxItems": 3, "items": {"type": "string", "maxLength": 12}},
        },
        "required": ["name", "count", "kind", "tags"],
        "additionalProperties": False,
    },
}
"""What the rows write; an answer to it never ends."""


class Exposed(msgspec.Struct, frozen=True, kw_only=True):
    """Medians over steps, in seconds. `masks_s` is what the host takes for the masks of all rows, hidden or not."""

    shape: str
    vocab_size: int
    device: str
    batch: int
    context_tokens: int
    steps: int
    fused_s: float
    deferred_s: float
    masked_s: float
    masks_s: float

    @property
    def share(self) -> float:
        """By what a step with masks is longer than a fused one, as a share of the latter."""
        return self.masked_s / self.fused_s - 1.0


class _Rows:
    """The engine's rows, written anew for each round."""

    def __init__(self, engine: JaxEngine, constraints: HostConstraints, batch: int, context_tokens: int) -> None:
        self.engine = engine
        self.constraints = constraints
        self.batch = batch
        self._context_tokens = context_tokens
        self._grammar = _grammar()
        self.mask_times: list[float] = []

    def begin(self) -> list[Constraint]:
        """All rows at their beginning, and a constraint for each."""
        states = [self._state(row) for row in range(self.batch)]
        self.engine.set_rows(states)
        self.engine.wait()
        return [self.constraints.begin(state.sampling, ()) for state in states]

    def fused(self, steps: int) -> list[float]:
        """Seconds of each step, the next being dispatched before the last is read."""
        self.begin()
        step = Step(decode=tuple(range(self.batch)))
        flight = self.engine.dispatch(step)

        def turn() -> None:
            nonlocal flight
            landing, flight = flight, self.engine.dispatch(step)
            self.engine.fetch(landing)

        times = _timed(turn, steps)
        self.engine.fetch(flight)
        return times

    def deferred(self, steps: int, *, masked: bool) -> list[float]:
        """Seconds of each step, whose forward pass runs while the last one's tokens are read and masks are made."""
        constraints = self.begin()
        step = Step(decode=tuple(range(self.batch)), deferred=True)
        landing: StepHandle | None = None

        def turn() -> None:
            nonlocal landing
            handle = self.engine.dispatch(step)
            sampled = () if landing is None else self.engine.fetch(landing)
            landing = self.engine.sample(handle, self._masks(constraints, sampled) if masked else {})

        times = _timed(turn, steps)
        assert landing is not None
        self.engine.fetch(landing)
        return times

    def _masks(self, constraints: Sequence[Constraint], sampled: Sequence[Sampled]) -> dict[int, bytes]:
        started = time.perf_counter()
        for one in sampled:
            constraints[one.row].advance(one.token)
        masks = self.constraints.masks(constraints)
        self.mask_times.append(time.perf_counter() - started)
        return {row: mask for row, mask in enumerate(masks) if mask is not None}

    def _state(self, row: int) -> RowState:
        width = self.engine.spec.pages_for(self.engine.spec.max_context_tokens)
        return RowState(
            row=row,
            sampling=SamplingParams(seed=row, max_tokens=1 << 20, constraint=ConstraintSpec(grammar=self._grammar)),
            choice=0,
            prompt=(),
            output=(),
            pages=tuple(range(1 + row * width, 1 + (row + 1) * width)),
            length=self._context_tokens,
            last_token=row,
        )


def measure(
    shape: str,
    *,
    vocab_size: int,
    batch: int,
    context_tokens: int,
    rounds: int,
    steps: int,
    device_kind: DeviceKind = "auto",
) -> Exposed:
    """`steps` steps of each kind in each of `rounds` rounds, after one that does not count."""
    device = find_devices(choose_platform(device_kind, parse_topology("mixed=1")))[0]

    from runtime.bench.steps import make_engine
    from runtime.compile_cache import enable_compile_cache
    from runtime.weights import bench_params

    enable_compile_cache()
    model = msgspec.structs.replace(named_shape(shape), vocab_size=vocab_size)
    engine = make_engine(
        model,
        bench_params(model, model.dtype, device),
        device,
        num_rows=batch,
        chunk_tokens=32,
        max_context_tokens=context_tokens + steps + 2,
    )
    rows = _Rows(engine, HostConstraints(_tokenizer(vocab_size), vocab_size), batch, context_tokens)
    kinds: list[Callable[[], list[float]]] = [
        lambda: rows.fused(steps),
        lambda: rows.deferred(steps, masked=False),
        lambda: rows.deferred(steps, masked=True),
    ]
    times: list[list[float]] = [[] for _ in kinds]
    for turn in range(rounds + 1):
        if turn == 1:
            rows.mask_times.clear()
        for kind, kept in zip(kinds, times, strict=True):
            kept += kind() if turn else kind()[:0]
    fused, deferred, masked = (statistics.median(part) for part in times)
    return Exposed(
        shape=shape,
        vocab_size=vocab_size,
        device=device.device_kind,
        batch=batch,
        context_tokens=context_tokens,
        steps=rounds * steps,
        fused_s=fused,
        deferred_s=deferred,
        masked_s=masked,
        masks_s=statistics.median(rows.mask_times),
    )


def _timed(turn: Callable[[], None], steps: int) -> list[float]:
    """Seconds of each turn after the first, which has nothing before it to wait for."""
    turn()
    times = []
    for _ in range(steps):
        started = time.perf_counter()
        turn()
        times.append(time.perf_counter() - started)
    return times


def _grammar() -> str:
    from llguidance import LLMatcher

    return str(LLMatcher.grammar_from_json_schema(msgspec.json.encode(SCHEMA).decode()))


def _tokenizer(vocab_size: int) -> Tokenizer:
    """The demo model's with words of common letters up to the size; half of them begin with a blank."""
    with TemporaryDirectory(prefix="runtime-bench-") as folder:
        write_tokenizer(Path(folder), filled_tokenizer(_words(vocab_size)))
        return Tokenizer.load(Path(folder))


def _words(count: int) -> Iterator[str]:
    """Different words; letters are drawn by their rank, so that many words begin alike, as real ones do."""
    rng = np.random.default_rng(0)
    weights = 1.0 / np.arange(1, len(LETTERS) + 1)
    seen: set[str] = set()
    while len(seen) < count:
        letters = rng.choice(list(LETTERS), p=weights / weights.sum(), size=int(rng.integers(4, 12)))
        word = "\u0120" * int(rng.integers(2)) + "".join(letters)
        if word not in seen:
            seen.add(word)
            yield word


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m runtime.bench.masks", allow_abbrev=False)
    parser.add_argument("--shape", choices=tuple(SHAPES), default="0.3b", help="random weights (default: %(default)s)")
    parser.add_argument("--device", choices=("auto", "cpu", "tpu", "gpu"), default="auto")
    parser.add_argument("--vocab-size", type=int, default=VOCAB_SIZE, help="tokens (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=16, help="decode rows (default: %(default)s)")
    parser.add_argument("--context", type=int, default=512, help="tokens that they hold (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="of each kind of step, in turns (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=20, help="measured in each round (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the medians here")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Raises UsageError."""
    flags = _parser().parse_args(argv)
    found = measure(
        flags.shape,
        vocab_size=flags.vocab_size,
        batch=flags.batch,
        context_tokens=flags.context,
        rounds=flags.rounds,
        steps=flags.steps,
        device_kind=flags.device,
    )
    sys.stdout.write(
        f"{found.shape}, {found.vocab_size} tokens, {found.batch} rows, {found.device}; medians of {found.steps}\n"
        f"  fused                   {found.fused_s * 1e3:8.3f} ms\n"
        f"  deferred, without masks {found.deferred_s * 1e3:8.3f} ms\n"
        f"  deferred, with masks    {found.masked_s * 1e3:8.3f} ms, {found.share:+.1%} of a fused step\n"
        f"  the host's masks alone  {found.masks_s * 1e3:8.3f} ms\n"
    )
    if flags.json is not None:
        shown = msgspec.to_builtins(found) | {"exposed_share": found.share}
        flags.json.write_bytes(msgspec.json.format(msgspec.json.encode(shown), indent=2) + b"\n")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UsageError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(2)
