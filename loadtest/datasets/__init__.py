"""What is sent: drawn prompts of exact lengths, or files of prompts, chats and traces.

A data set is named `random`, `prefix`, or `FORMAT:FILE`. It is made once, before the first request, from a seed: the
same flags always send the same prompts in the same order.
"""

from collections.abc import Callable
from pathlib import Path

from loadtest.datasets.files import read_jsonl, read_sharegpt
from loadtest.datasets.shape import Shape
from loadtest.datasets.synthetic import random_requests, shared_prefixes
from loadtest.datasets.trace import read_mooncake
from loadtest.errors import UsageError
from loadtest.request import Api, Request

_DRAWN: dict[str, Callable[[Shape, int, str], list[Request]]] = {"random": random_requests, "prefix": shared_prefixes}
_READ: dict[str, Callable[[Path, Shape, str], list[Request]]] = {
    "jsonl": read_jsonl,
    "sharegpt": read_sharegpt,
    "mooncake": read_mooncake,
}
ALLOWED = ", ".join([*_DRAWN, *(f"{name}:FILE" for name in _READ)])
DEFAULT_COUNT = 100


class Dataset:
    """A named data set. `take` may be asked for several runs of requests, which never overlap while it lasts."""

    def __init__(self, name: str, shape: Shape, seed: str) -> None:
        """Reads a file at once. Raises UsageError for an unknown name, and for a file that is missing, bad or empty."""
        kind, colon, path = name.partition(":")
        if kind not in (_READ if colon else _DRAWN) or (colon and not path):
            raise UsageError(f"--data {name!r}: allowed: {ALLOWED}")
        self._draw, self._shape, self._seed = _DRAWN.get(kind), shape, seed
        self._file = _READ[kind](Path(path), shape, seed) if colon else []
        self._next = self._num_warmup = 0

    @property
    def default_count(self) -> int:
        """How many requests are sent when nobody says."""
        return len(self._file) or DEFAULT_COUNT

    @property
    def first(self) -> Request:
        """What the others are like; not taken."""
        return self._draw(self._shape, 1, self._seed)[0] if self._draw is not None else self._file[0]

    @property
    def num_repeated(self) -> int:
        """How many requests were taken a second time because the file was used up, its warm-up included."""
        return max(0, self._next + self._num_warmup - len(self._file)) if self._file else 0

    def warmup(self, count: int) -> list[Request]:
        """Requests to send before: freshly drawn, or a file's last lines, so that it is still read from its start."""
        if self._draw is not None:
            return self.take(count)
        self._num_warmup = min(count, len(self._file))
        return [self._file[-1 - index % len(self._file)] for index in range(count)]

    def take(self, count: int) -> list[Request]:
        """The next requests: freshly drawn, or the file's next lines, from its start again when it is used up."""
        first, self._next = self._next, self._next + count
        if self._draw is not None:
            return self._draw(self._shape, count, f"{self._seed} {first}")
        return [self._file[index % len(self._file)] for index in range(first, self._next)]


def api_of(request: Request, asked: Api | None) -> Api:
    """What was asked for, or what fits a data set whose requests are like this one. Raises UsageError."""
    if asked == "chat" and isinstance(request.prompt, tuple):
        raise UsageError("--api chat: this data set's prompts are token ids; allowed: completions")
    if asked == "completions" and request.messages is not None:
        raise UsageError("--api completions: this data set holds chats; allowed: chat")
    return asked or ("chat" if request.messages is not None else "completions")
