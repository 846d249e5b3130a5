"""Prompts drawn from a seed and sent as token ids, so that lengths are exact on any tokenizer."""

import random

from loadtest.datasets.shape import Shape
from loadtest.request import Request


def random_requests(shape: Shape, count: int, seed: str) -> list[Request]:
    """Prompts that share nothing."""
    rng = random.Random(f"random {seed}")
    return [_request(shape, rng, shape.draw_ids(rng, shape.draw_length(rng, shape.input_tokens))) for _ in range(count)]


def shared_prefixes(shape: Shape, count: int, seed: str) -> list[Request]:
    """Prompts that begin like the others of their group; group g is drawn with weight (g + 1) ** -zipf.

    The prefixes are the same for every part of a run, so that a warm-up warms them.
    """
    prefix_rng, rng = random.Random(f"prefixes {seed.split()[0]}"), random.Random(f"prefix {seed}")
    prefixes = [shape.draw_ids(prefix_rng, shape.prefix_tokens) for _ in range(shape.groups)]
    weights = [(group + 1) ** -shape.zipf for group in range(shape.groups)]
    return [
        _request(shape, rng, prefix + shape.draw_ids(rng, shape.draw_length(rng, shape.input_tokens)))
        for prefix in rng.choices(prefixes, weights, k=count)
    ]


def _request(shape: Shape, rng: random.Random, prompt: tuple[int, ...]) -> Request:
    return Request(prompt=prompt, prompt_tokens=len(prompt), max_tokens=shape.draw_output(rng), exact_output=True)
