"""Reading what a step sampled and scored: from arrays to the contract's `Sampled` and `Scored`. Host side."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

from runtime.engine import PrefillSegment, Sampled, Scored
from runtime.step_sampling import Drawn


class Draw(NamedTuple):
    """One program's samples; real rows come first. `wanted` is how many alternatives each row asked for."""

    drawn: Drawn
    rows: tuple[int, ...]
    wanted: tuple[int | None, ...]


def any_wanted(wanted: Sequence[int | None]) -> bool:
    """Whether a row asked for logprobs."""
    return any(count is not None for count in wanted)


def start_copy(draw: Draw) -> None:
    """Begins to bring to the host what will be read of a draw."""
    start_copies(draw.drawn if any_wanted(draw.wanted) else draw.drawn[:1])


def start_copies(arrays: Sequence[jax.Array]) -> None:
    """Begins to bring arrays to the host."""
    for array in arrays:
        array.copy_to_host_async()


def read_scores(arrays: Sequence[np.ndarray], segment: PrefillSegment, start: int, end: int) -> tuple[Scored, ...]:
    """What follows the step's tokens start..end-1, which are a segment's; `arrays` are those of `Scores`."""
    assert segment.score is not None
    chosen, values, ids = (array[start:end].tolist() for array in arrays)
    following = (*segment.tokens[1:], *(() if segment.next_token is None else (segment.next_token,)))
    return tuple(
        Scored(token, logprob, _best(ids[index], values[index], segment.score))
        for index, (token, logprob) in enumerate(zip(following, chosen, strict=True))
    )


def _best(ids: Sequence[int], values: Sequence[float], count: int) -> tuple[tuple[int, float], ...]:
    """The first ones; beyond the vocabulary ids are -1."""
    return tuple(pair for pair in zip(ids[:count], values[:count], strict=True) if pair[0] >= 0)


def read_samples(draw: Draw) -> list[Sampled]:
    """The samples of a draw's real rows; blocks until they are there."""
    tokens = np.asarray(draw.drawn.tokens).tolist()
    if not any_wanted(draw.wanted):
        return [Sampled(row=row, token=token) for row, token in zip(draw.rows, tokens, strict=False)]
    chosen, values, ids = (np.asarray(array).tolist() for array in draw.drawn[1:])
    sampled = []
    for index, (row, wanted) in enumerate(zip(draw.rows, draw.wanted, strict=True)):
        if wanted is None:
            sampled.append(Sampled(row=row, token=tokens[index]))
            continue
        top = _best(ids[index], values[index], wanted)
        sampled.append(Sampled(row=row, token=tokens[index], logprob=chosen[index], top=top))
    return sampled
