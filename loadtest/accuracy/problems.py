"""Problems in MATH-500's layout, and the question that is made of each."""

import hashlib
from importlib.util import find_spec
from pathlib import Path

import msgspec

from loadtest.datasets.files import read_lines
from loadtest.errors import UsageError

PROMPT = "{query}\nPlease reason step by step, and put your final answer within \\boxed{}."
DEMO = Path("demo", "test.jsonl")


class Problem(msgspec.Struct, frozen=True):
    """One line of the data file; further fields are ignored."""

    problem: str
    answer: str
    level: int
    subject: str = ""
    unique_id: str = ""

    @property
    def question(self) -> str:
        """What the model is asked. Braces in the problem stay as they are."""
        return PROMPT.replace("{query}", self.problem, 1)


def read_problems(path: Path | None, limit: int | None) -> tuple[str, tuple[Problem, ...]]:
    """The data set's name and its problems, the first `limit` of them. Raises UsageError.

    A folder holds one JSONL file and gives the name; without a path it is the demo model's.
    """
    file = demo_file() if path is None else _file_of(path)
    problems, places = list[Problem](), dict[str, str]()
    for place, line in read_lines(file):
        problem = _from_line(place, line)
        if problem.unique_id in places:
            raise UsageError(f"{place}: unique_id {problem.unique_id!r} is that of {places[problem.unique_id]}")
        places[problem.unique_id] = place
        problems.append(problem)
    name = "demo" if path is None else path.resolve().name if path.is_dir() else path.stem
    return name, tuple(problems[:limit])


def _from_line(place: str, line: bytes) -> Problem:
    try:
        problem = msgspec.json.decode(line, type=Problem)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{place}: {error}") from None
    if not problem.problem.strip() or not problem.answer.strip():
        raise UsageError(f"{place}: allowed: a 'problem' and an 'answer' that are not empty")
    number = place.rpartition(":")[2]
    return problem if problem.unique_id else msgspec.structs.replace(problem, unique_id=f"line {number}")


def _file_of(path: Path) -> Path:
    if not path.is_dir():
        return path
    found = sorted(path.glob("*.jsonl"))
    if len(found) != 1:
        names = ", ".join(file.name for file in found) or "none"
        raise UsageError(f"--data {str(path)!r}: allowed: a folder with one .jsonl file; it holds {names}")
    return found[0]


def demo_file() -> Path:
    """The demo model's problems, which come with the server. Its code is not imported. Raises UsageError."""
    spec = find_spec("runtime")
    for folder in (spec.submodule_search_locations or []) if spec is not None else []:
        if (file := Path(folder) / DEMO).is_file():
            return file
    raise UsageError("--data is needed: the demo model's problems come with the package runtime, which is not there")


def digest(problems: tuple[Problem, ...]) -> str:
    """Of everything that is asked and expected, in order."""
    return hashlib.sha256(msgspec.json.encode(problems)).hexdigest()[:16]
