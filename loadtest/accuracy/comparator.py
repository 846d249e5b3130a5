"""The comparator's process: reads an expected and a found answer a line, and says what math-verify thinks of them.

It has no clock but one: whoever asks ends it when it takes too long. Only if that one is gone does an alarm end it.
"""

import logging
import signal
import sys
from typing import Any

import msgspec
from math_verify import LatexExtractionConfig, parse, verify

MEMORY_BYTES = 4 << 30
ORPHAN_S = 5
_READ = (LatexExtractionConfig(boxed_match_priority=0),)


def compare(expected: str, found: str) -> str:
    """A grade, as in `comparison`."""
    try:
        gold, answer = _parse(expected), _parse(found)
        if not gold or not answer:
            return "unparsed"
        return "right" if verify(gold, answer, timeout_seconds=0, raise_on_error=True) else "wrong"
    except (MemoryError, RecursionError):
        return "undecided"
    except Exception:  # whatever a parser or an algebra system meets in a text that a model made up
        return "unparsed"


def _parse(text: str) -> list[Any]:
    """What it means; nothing where only the text itself is left of it."""
    parsed = parse(f"\\boxed{{{text}}}", _READ, fallback_mode="no_fallback", parsing_timeout=0)
    return [one for one in parsed if not isinstance(one, str)]


def main() -> None:
    """Until the other end closes."""
    logging.disable()
    _limit_memory()
    sys.stdout.write('"ready"\n')
    sys.stdout.flush()
    for line in sys.stdin.buffer:
        expected, found, limit_s = msgspec.json.decode(line, type=tuple[str, str, float])
        _set_alarm(int(limit_s) + ORPHAN_S)
        said = compare(expected, found)
        _set_alarm(0)
        sys.stdout.buffer.write(msgspec.json.encode(said) + b"\n")
        sys.stdout.flush()


def _set_alarm(seconds: int) -> None:
    if hasattr(signal, "alarm"):  # not on Windows
        signal.alarm(seconds)


def _limit_memory() -> None:
    try:
        import resource
    except ImportError:  # not on Windows
        return
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = MEMORY_BYTES if hard == resource.RLIM_INFINITY else min(MEMORY_BYTES, hard)
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))


if __name__ == "__main__":
    main()
