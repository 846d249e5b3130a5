"""Trains the demo model from nothing and writes it as a Hugging Face checkpoint.

Everything follows from the seed: tokenizer, initial weights and the stream of training examples, which is drawn
on the fly from the training split. The last steps round to bfloat16 in the forward pass, so that the stored bfloat16
weights serve as well as float32 ones. The model card states how long the run takes.

    python -m runtime.demo.train --out DIR
"""

from __future__ import annotations

import argparse
import json
import logging
import queue
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
from safetensors.numpy import save_file

from runtime.demo.examples import ROW_LENGTH, RowPacker, Rows, corpus
from runtime.demo.network import Params, Shape, forward, hf_config, init_params
from runtime.demo.tokenizer import END_OF_TEXT, TURN_END, save_tokenizer, train_tokenizer

logger = logging.getLogger(__name__)

SEED = 1
ROWS = 16
STEPS = 3600
WARM_UP_STEPS = 100
ROUNDED_STEPS = 200  # the last ones, which round to bfloat16 in the forward pass
MUON_LEARNING_RATE = 6e-3
ADAM_LEARNING_RATE = 3e-3
WEIGHT_DECAY = 0.05
CORPUS_EXAMPLES = 20_000
SAVE_EVERY = 250


def make_optimizer(steps: int) -> optax.GradientTransformation:
    """Muon for the matrices of the layers, Adam for the rest; rates rise, then fall along a cosine until the end."""

    def schedule(peak: float) -> optax.Schedule:
        return optax.warmup_cosine_decay_schedule(0.0, peak, min(WARM_UP_STEPS, steps // 2), steps, peak * 0.01)

    def is_layer_matrix(params: Params) -> dict[str, optax.contrib.MuonDimensionNumbers | None]:
        matrix = optax.contrib.MuonDimensionNumbers()
        return {name: matrix if name.endswith("_proj.weight") else None for name in params}

    return optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.contrib.muon(
            schedule(MUON_LEARNING_RATE),
            weight_decay=WEIGHT_DECAY,
            adam_learning_rate=schedule(ADAM_LEARNING_RATE),
            adam_b2=0.98,
            muon_weight_dimension_numbers=is_layer_matrix,
            consistent_rms=0.2,
        ),
    )


def loss_of(params: Params, shape: Shape, rows: tuple[jax.Array, jax.Array, jax.Array], rounded: bool) -> jax.Array:
    """Mean cross-entropy over the tokens that the model has to write itself."""
    tokens, segments, weights = rows
    index = jnp.arange(tokens.shape[1])
    mask = (segments[:, :, None] == segments[:, None, :]) & (index[:, None] >= index)
    positions = jnp.broadcast_to(index, tokens.shape)
    logits, _ = forward(params, shape, tokens, positions, mask, rounded=rounded)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits[:, :-1], tokens[:, 1:])
    counted = weights[:, 1:].astype(jnp.float32)
    return jnp.sum(losses * counted) / jnp.sum(counted)


def save_checkpoint(params: Params, shape: Shape, folder: Path, eos_ids: list[int], pad_id: int) -> None:
    """Write ``config.json``, ``generation_config.json`` and ``model.safetensors`` (bfloat16)."""
    folder.mkdir(parents=True, exist_ok=True)
    generation = {
        "do_sample": True,
        "eos_token_id": eos_ids,
        "pad_token_id": pad_id,
        "temperature": 0.6,
        "top_p": 0.95,
    }
    for name, content in (("config.json", hf_config(shape, eos_ids, pad_id)), ("generation_config.json", generation)):
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    arrays = {name: np.asarray(value).astype(ml_dtypes.bfloat16) for name, value in params.items()}
    save_file(arrays, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "model.safetensors").chmod(0o644)  # it is written for its owner alone


def _prefetch(packer: RowPacker, steps: int, ahead: int = 8) -> queue.Queue[Rows]:
    """Pack rows on a thread of their own while the step runs."""
    batches: queue.Queue[Rows] = queue.Queue(ahead)

    def produce() -> None:
        for _ in range(steps):
            batches.put(packer.next())

    threading.Thread(target=produce, daemon=True).start()
    return batches


def train(out: Path, seed: int = SEED, steps: int = STEPS) -> None:
    """Train for ``steps`` steps and write the checkpoint to ``out``, renewed as the run goes on."""
    shape = Shape()
    tokenizer = train_tokenizer(corpus(seed, CORPUS_EXAMPLES))
    save_tokenizer(tokenizer, out, shape.max_position_embeddings)
    vocabulary = tokenizer.get_vocab()
    eos_ids = [vocabulary[TURN_END], vocabulary[END_OF_TEXT]]
    batches = _prefetch(RowPacker(tokenizer, seed, ROWS), steps)
    for step, params in _run(init_params(shape, seed), shape, batches, steps):
        if step % SAVE_EVERY == 0 or step == steps:
            save_checkpoint(params, shape, out, eos_ids, eos_ids[1])


def _run(params: Params, shape: Shape, batches: queue.Queue[Rows], steps: int) -> Iterator[tuple[int, Params]]:
    """Step number and parameters after each step; the parameters live until the next step."""
    optimizer = make_optimizer(steps)
    state = optimizer.init(params)

    @partial(jax.jit, donate_argnums=(0, 1), static_argnums=3)
    def step(
        params: Params, state: Any, rows: tuple[jax.Array, jax.Array, jax.Array], rounded: bool
    ) -> tuple[Params, Any, jax.Array]:
        loss, gradients = jax.value_and_grad(loss_of)(params, shape, rows, rounded)
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state, loss

    started = time.monotonic()
    recent: list[float] = []
    for number in range(1, steps + 1):
        rows = batches.get()
        arrays = (jnp.asarray(rows.tokens), jnp.asarray(rows.segments), jnp.asarray(rows.weights))
        params, state, loss = step(params, state, arrays, number > steps - ROUNDED_STEPS)
        recent.append(float(loss))
        if number % 50 == 0 or number == steps:
            seconds = time.monotonic() - started
            mean, rate = sum(recent) / len(recent), number * ROWS * ROW_LENGTH / seconds
            logger.info("step %d/%d loss %.4f, %.0f tokens/s, %.0f s", number, steps, mean, rate, seconds)
            recent.clear()
        yield number, params


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Train the demo model.")
    parser.add_argument("--out", type=Path, required=True, help="folder of the checkpoint")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--steps", type=int, default=STEPS, help="length of the run (default: %(default)s)")
    arguments = parser.parse_args()
    logging.basicConfig(format="%(message)s")
    logger.setLevel(logging.INFO)
    train(arguments.out, arguments.seed, arguments.steps)


if __name__ == "__main__":
    main()
