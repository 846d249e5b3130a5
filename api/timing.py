"""Stage times for clients that ask: the request header, and the answer's key that it earns.

A client that does not send the header gets exactly the answer that it would get otherwise.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from actors.stage_clock import StageTimes
from runtime.errors import RequestError

TIMING_HEADER = "x-runtime-timing"
TIMING_KEY = "runtime_timing"

_VALUES = {b"0": False, b"1": True}
_SHOWN_BYTES = 40


def wants_timing(headers: Iterable[tuple[bytes, bytes]]) -> bool:
    """Whether the request's headers ask for stage times. Raises RequestError for a value that is neither 0 nor 1."""
    name = TIMING_HEADER.encode()
    values = {value.strip() for key, value in headers if key == name}
    for value in values - _VALUES.keys():
        shown = value[:_SHOWN_BYTES].decode("latin-1")
        raise RequestError(f"{TIMING_HEADER}: must be 0 or 1, got {shown!r}", param=TIMING_HEADER)
    if len(values) > 1:
        raise RequestError(f"{TIMING_HEADER}: sent both as 0 and as 1", param=TIMING_HEADER)
    return b"1" in values


def timing_body(timings: Sequence[StageTimes]) -> dict[str, Any]:
    """What stands under `TIMING_KEY`: one entry for each choice of the answer, by its index; all times in seconds."""
    return {"choices": [_choice_body(index, times) for index, times in enumerate(timings)]}


def _choice_body(index: int, times: StageTimes) -> dict[str, Any]:
    return {
        "index": index,
        "attempts": times.attempts,
        "prefill_worker": times.prefill_worker,
        "decode_worker": times.decode_worker,
        "queue_s": times.queue_s,
        "prefill_s": times.prefill_s,
        "transfer_s": times.transfer_s,
        "handoff_s": times.handoff_s,
        "decode_s": times.decode_s,
        "total_s": times.total_s,
    }
