"""One response from its first delta to its last event. Pure: the caller brings deltas, ends and the time.

Events are numbered here, from 0, without gaps. Whoever answers whole throws them away: the object is the same.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import msgspec

from actors.messages import Delta, ErrorInfo, FinishReason, TokenRecord
from api.parsers.parts import Content, OutputParser, Part
from api.parts import ChoiceParts
from api.responses.objects import (
    IncompleteDetails,
    ResponseObject,
    ResponseStatus,
    failure_of,
    usage_of,
)
from api.responses.output import Event, Logprob, Output
from api.run import Usage
from api.timing import timing_body

RenderLogprobs = Callable[[Sequence[TokenRecord]], list[Logprob]]

_encoder = msgspec.json.Encoder()
_LAST_EVENTS = {
    "completed": "response.completed",
    "incomplete": "response.incomplete",
    "failed": "response.failed",
    "cancelled": "response.incomplete",
}


def encode_events(events: Sequence[Event]) -> bytes:
    """Server-sent events: each with its type as name and once more inside."""
    return b"".join(
        b"event: " + event["type"].encode() + b"\ndata: " + _encoder.encode(event) + b"\n\n" for event in events
    )


class Progress:
    """A response that is being made; `response` is how it stands."""

    def __init__(self, response: ResponseObject, parser: OutputParser, logprobs: RenderLogprobs | None) -> None:
        self.response = response
        self._parts = ChoiceParts(parser)
        self._render = logprobs
        self._output = Output()
        self._pending: list[TokenRecord] = []
        self._finish: FinishReason | None = None
        self._num_events = 0
        self._begun = False

    def queue(self) -> list[Event]:
        """The events of a response that waits in the background."""
        self._change("queued")
        return self._numbered([self._event("response.created"), self._event("response.queued")])

    def add(self, delta: Delta) -> list[Event]:
        """The events of a delta; before the first, those of the beginning."""
        events = self._begin()
        self._pending.extend(delta.tokens)
        self._finish = delta.finish
        return self._numbered(events + self._take(self._parts.add(delta)))

    def complete(self, usage: Usage, completed_at: int, *, include_timing: bool = False) -> list[Event]:
        """The last events of an answer that has come to its end, be it cut by its length."""
        status: Literal["completed", "incomplete"] = "incomplete" if self._finish == "length" else "completed"
        events = self._begin() + self._output.finish(status, self._logprobs())
        if include_timing:
            self._change(status, runtime_timing=timing_body(usage.timings))
        return self._end(
            events,
            status,
            incomplete_details=IncompleteDetails() if status == "incomplete" else None,
            completed_at=completed_at if status == "completed" else None,
            usage=usage_of(usage, self._parts.num_reasoning_tokens),
        )

    def fail(self, error: ErrorInfo) -> list[Event]:
        """The last events of an answer that failed; what there is of it stays."""
        return self._end(self._begin() + self._output.close("incomplete"), "failed", error=failure_of(error))

    def cancel(self) -> list[Event]:
        """The last events of an answer that its client cancelled. No event has that name: it ends as incomplete."""
        return self._end(self._begin() + self._output.close("incomplete"), "cancelled")

    def _begin(self) -> list[Event]:
        if self._begun:
            return []
        self._begun = True
        events = [] if self._num_events else [self._event("response.created")]
        self._change("in_progress")
        return [*events, self._event("response.in_progress")]

    def _take(self, parts: Sequence[Part]) -> list[Event]:
        """Tokens without a part yet wait for the next; those of several kinds belong to the content among them."""
        if not parts:
            return []
        logprobs = self._logprobs() if any(isinstance(part, Content) for part in parts) else []
        self._pending = []
        events: list[Event] = []
        for part in parts:
            if isinstance(part, Content):
                events += self._output.add(part, logprobs)
                logprobs = []
            else:
                events += self._output.add(part)
        return events

    def _logprobs(self) -> list[Logprob]:
        return [] if self._render is None else self._render(self._pending)

    def _change(self, status: ResponseStatus, **fields: Any) -> None:
        self.response = msgspec.structs.replace(self.response, status=status, **fields)

    def _end(self, events: list[Event], status: ResponseStatus, **fields: Any) -> list[Event]:
        self._change(status, output=tuple(self._output.items), **fields)
        return self._numbered([*events, self._event(_LAST_EVENTS[status])])

    def _event(self, name: str) -> Event:
        return {"type": name, "response": self.response}

    def _numbered(self, events: Sequence[Event]) -> list[Event]:
        first = self._num_events
        self._num_events += len(events)
        return [{**event, "sequence_number": first + index} for index, event in enumerate(events)]
