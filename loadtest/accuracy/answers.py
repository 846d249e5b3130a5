"""The file of answers: a line of settings, then one line per answer, written as they come.

A later run with the same settings takes what is there and asks for the rest.
"""

from pathlib import Path
from types import TracebackType
from typing import BinaryIO, TypeVar

import msgspec

from loadtest.errors import UsageError

FORMAT = "loadtest-eval/1"
T = TypeVar("T", bound=msgspec.Struct)


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """All that an answer depends on. The number of repeats is none of it: it may grow from run to run."""

    format: str = FORMAT
    url: str
    model: str
    data: str
    problems: int
    digest: str
    prompt: str
    temperature: float
    top_p: float
    max_tokens: int
    seed: int


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What the server said to one problem, in one repeat."""

    repeat: int
    unique_id: str
    text: str
    finish_reason: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    took_s: float = 0.0

    @property
    def is_cut(self) -> bool:
        """Whether it ran out of tokens."""
        return self.finish_reason == "length"


class AnswerFile:
    """Open for adding to, from `with` on."""

    def __init__(self, path: Path, settings: Settings) -> None:
        """Reads what is there. Raises UsageError when the file is not one of these, or has other settings."""
        self._path, self._settings = path, settings
        self.answers = dict[tuple[int, str], Answer]()
        self._kept_bytes = 0
        self._file: BinaryIO | None = None
        if path.exists():
            self._read(path.read_bytes())

    def __enter__(self) -> "AnswerFile":
        self._file = self._path.open("ab")
        self._file.truncate(self._kept_bytes)
        if self._kept_bytes == 0:
            self._write(self._settings)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()

    def add(self, answer: Answer) -> None:
        """Keeps it, on disk first."""
        self._write(answer)
        self.answers[answer.repeat, answer.unique_id] = answer

    def _write(self, value: Settings | Answer) -> None:
        assert self._file is not None
        self._file.write(msgspec.json.encode(value) + b"\n")
        self._file.flush()

    def _read(self, content: bytes) -> None:
        # What was not written to its end, because the machine went down, is asked again.
        whole = content[: content.rfind(b"\n") + 1]
        self._kept_bytes = len(whole)
        for number, line in enumerate(whole.split(b"\n")[:-1], 1):
            place = f"{self._path}:{number}"
            if number == 1:
                self._compare(_decode(place, line, Settings))
            else:
                answer = _decode(place, line, Answer)
                self.answers[answer.repeat, answer.unique_id] = answer
        if content and not whole:
            raise UsageError(f"{self._path}: allowed: a file that `loadtest eval` wrote, or a new one")

    def _compare(self, found: Settings) -> None:
        there, here = msgspec.structs.asdict(found), msgspec.structs.asdict(self._settings)
        unequal = [f"{name} {there[name]!r}, not {here[name]!r}" for name in here if there[name] != here[name]]
        if unequal:
            raise UsageError(
                f"--output {str(self._path)!r} was made with other settings: {'; '.join(unequal)}; "
                "allowed: the same ones, or another file"
            )


def _decode(place: str, line: bytes, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(line, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{place}: {error}; allowed: a file that `loadtest eval` wrote, or a new one") from None
