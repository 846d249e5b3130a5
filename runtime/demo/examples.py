"""Training examples as tokens: conversations in the chat format, packed into rows.

Owns the mixture (levels, suffixes, system prompts, earlier turns, small talk, bare completions) and which tokens
carry loss: only what the model itself has to write. Draws from the training split alone.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from tokenizers import Tokenizer

from runtime.demo import phrasing
from runtime.demo.arithmetic import Operation
from runtime.demo.problems import LEVELS, Problem, draw, make_problem, split_of
from runtime.demo.tokenizer import END_OF_TEXT, MARKER_TOKENS, SPECIAL_TOKENS, TURN_END, TURN_START

LEVEL_WEIGHTS = (14, 16, 20, 26, 24)
ROW_LENGTH = 224


@dataclass(frozen=True)
class Rows:
    """Packed rows, int32[B, T]: tokens, which example each token is of (0 is padding), and where loss counts."""

    tokens: np.ndarray
    segments: np.ndarray
    weights: np.ndarray


def chat_prompt(question: str, system: str | None = None, history: tuple[tuple[str, str], ...] = ()) -> str:
    """The text the chat template gives for a conversation that the assistant has to continue."""
    turns = [("system", system)] if system is not None else []
    for earlier_question, earlier_answer in history:
        turns += [("user", earlier_question), ("assistant", earlier_answer.split("</think>")[-1].lstrip("\n"))]
    turns.append(("user", question))
    body = "".join(f"{TURN_START}{role}\n{text}{TURN_END}\n" for role, text in turns)
    return f"{body}{TURN_START}assistant\n"


def draw_texts(rng: random.Random) -> tuple[str, str]:
    """One training example: the prompt, and what the model should write after it."""
    kind = rng.random()
    if kind < 0.03:
        question, answer = phrasing.small_talk(rng)
        return chat_prompt(question, phrasing.system(rng)), answer + TURN_END
    problem = _draw_problem(rng)
    question, answer = phrasing.ask(rng, problem.expression), phrasing.reply(problem.working)
    if kind < 0.06:
        return question, f"{answer}{END_OF_TEXT}" if question.endswith("=") else f"\n{answer}{END_OF_TEXT}"
    history: tuple[tuple[str, str], ...] = ()
    if kind < 0.12:
        earlier = draw(rng, rng.choice((1, 2, 3)), "train")
        history = ((phrasing.ask(rng, earlier.expression), phrasing.reply(earlier.working)),)
        if rng.random() < 0.2:
            history = (phrasing.small_talk(rng),)
    return chat_prompt(question + phrasing.suffix(rng), phrasing.system(rng), history), answer + TURN_END


def _draw_problem(rng: random.Random) -> Problem:
    """A training problem of some level, or now and then a division that leaves a remainder."""
    if rng.random() < 0.03:
        division = Operation("/", rng.randint(0, 999 if rng.random() < 0.5 else 99), rng.randint(1, 9))
        if split_of(division) == "train":
            return make_problem(division, level=4)
    return draw(rng, rng.choices(LEVELS, LEVEL_WEIGHTS)[0], "train")


def corpus(seed: int, count: int) -> Iterator[str]:
    """Text to train the tokenizer on."""
    rng = random.Random(seed)
    for _ in range(count):
        text = "".join(draw_texts(rng))
        for token in SPECIAL_TOKENS + MARKER_TOKENS:
            text = text.replace(token, "")
        yield text


class RowPacker:
    """Draws examples and packs them into rows: each row takes the longest waiting example that still fits."""

    def __init__(self, tokenizer: Tokenizer, seed: int, rows: int, waiting: int = 256) -> None:
        self._tokenizer = tokenizer
        self._rng = random.Random(seed)
        self._rows = rows
        self._waiting_size = waiting
        self._waiting: list[tuple[list[int], int]] = []

    def _refill(self) -> None:
        while len(self._waiting) < self._waiting_size:
            prompt, answer = draw_texts(self._rng)
            prompt_ids = self._tokenizer.encode(prompt).ids
            ids = prompt_ids + self._tokenizer.encode(answer).ids
            if len(ids) <= ROW_LENGTH:
                self._waiting.append((ids, len(prompt_ids)))

    def next(self) -> Rows:
        """The next batch of rows."""
        shape = (self._rows, ROW_LENGTH)
        rows = Rows(np.zeros(shape, np.int32), np.zeros(shape, np.int32), np.zeros(shape, np.int32))
        for row in range(self._rows):
            self._refill()
            filled, segment, index = 0, 0, 0
            while True:
                ids, prompt_length = self._waiting.pop(index)
                end = filled + len(ids)
                segment += 1
                rows.tokens[row, filled:end] = ids
                rows.segments[row, filled:end] = segment
                rows.weights[row, filled + prompt_length : end] = 1
                filled = end
                fitting = [i for i, (waiting, _) in enumerate(self._waiting) if len(waiting) <= ROW_LENGTH - filled]
                if not fitting:
                    break
                index = max(fitting, key=lambda i: len(self._waiting[i][0]))
        return rows
