"""Parts of an answer become output items, and the events that tell of them.

One item is open at a time; a part of another kind closes it. Every `added` has its `done`, whatever ends the answer.
Pure: no clock, no I/O; the caller numbers the events.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from api.parsers.parts import CallArguments, CallBegan, Content, Part, Reasoning
from api.responses.items import (
    FunctionCallItem,
    ItemStatus,
    MessageItem,
    OutputItem,
    OutputText,
    ReasoningItem,
    ReasoningText,
    new_id,
)

Event = dict[str, Any]
Logprob = dict[str, Any]


class _OpenItem(ABC):
    """An item that grows."""

    delta_event: str

    def __init__(self, item_id: str, output_index: int) -> None:
        self.id = item_id
        self.where: dict[str, Any] = {"item_id": item_id, "output_index": output_index}
        self.texts: list[str] = []

    @property
    def text(self) -> str:
        return "".join(self.texts)

    @abstractmethod
    def begin(self) -> list[Event]:
        """The events by which it appears."""

    @abstractmethod
    def end(self, status: ItemStatus) -> tuple[OutputItem, list[Event]]:
        """The whole item, and the events by which it is finished."""

    def grow(self, text: str) -> list[Event]:
        """The event of a further piece."""
        self.texts.append(text)
        return [{"type": self.delta_event, **self.where, "delta": text}]

    def _added(self, item: OutputItem) -> Event:
        return {"type": "response.output_item.added", "output_index": self.where["output_index"], "item": item}

    def _done(self, item: OutputItem) -> Event:
        return {"type": "response.output_item.done", "output_index": self.where["output_index"], "item": item}


class _OpenMessage(_OpenItem):
    delta_event = "response.output_text.delta"

    def __init__(self, output_index: int) -> None:
        super().__init__(new_id("msg"), output_index)
        self.where["content_index"] = 0
        self.logprobs: list[Logprob] = []

    def begin(self) -> list[Event]:
        item = MessageItem(id=self.id, status="in_progress", role="assistant", content=())
        part = {"type": "response.content_part.added", **self.where, "part": OutputText("")}
        return [self._added(item), part]

    def grow(self, text: str, logprobs: Sequence[Logprob] = ()) -> list[Event]:
        self.logprobs.extend(logprobs)
        return [{**event, "logprobs": _short(logprobs)} for event in super().grow(text)]

    def end(self, status: ItemStatus) -> tuple[OutputItem, list[Event]]:
        part = OutputText(self.text, logprobs=tuple(self.logprobs))
        item = MessageItem(id=self.id, status=status, role="assistant", content=(part,))
        done = {"type": "response.output_text.done", **self.where, "text": self.text, "logprobs": _short(self.logprobs)}
        return item, [done, {"type": "response.content_part.done", **self.where, "part": part}, self._done(item)]


class _OpenReasoning(_OpenItem):
    delta_event = "response.reasoning_text.delta"

    def __init__(self, output_index: int) -> None:
        super().__init__(new_id("rs"), output_index)
        self.where["content_index"] = 0

    def begin(self) -> list[Event]:
        item = ReasoningItem(id=self.id, status="in_progress", content=())
        part = {"type": "response.content_part.added", **self.where, "part": ReasoningText("")}
        return [self._added(item), part]

    def end(self, status: ItemStatus) -> tuple[OutputItem, list[Event]]:
        part = ReasoningText(self.text)
        item = ReasoningItem(id=self.id, status=status, content=(part,))
        done = {"type": "response.reasoning_text.done", **self.where, "text": self.text}
        return item, [done, {"type": "response.content_part.done", **self.where, "part": part}, self._done(item)]


class _OpenCall(_OpenItem):
    delta_event = "response.function_call_arguments.delta"

    def __init__(self, output_index: int, began: CallBegan) -> None:
        super().__init__(new_id("fc"), output_index)
        self._began = began

    def begin(self) -> list[Event]:
        return [self._added(self._item("in_progress"))]

    def end(self, status: ItemStatus) -> tuple[OutputItem, list[Event]]:
        item = self._item(status)
        done = {
            "type": "response.function_call_arguments.done",
            **self.where,
            "name": item.name,
            "arguments": item.arguments,
        }
        return item, [done, self._done(item)]

    def _item(self, status: ItemStatus) -> FunctionCallItem:
        began = self._began
        return FunctionCallItem(id=self.id, status=status, call_id=began.id, name=began.name, arguments=self.text)


class Output:
    """The items of one answer as they grow."""

    def __init__(self) -> None:
        self.items: list[OutputItem] = []
        self._open: _OpenItem | None = None

    def add(self, part: Part, logprobs: Sequence[Logprob] = ()) -> list[Event]:
        """Takes the next part; `logprobs` are those of a content's tokens."""
        match part:
            case Content(text):
                return self._content(text, logprobs)
            case Reasoning(text):
                events = [] if isinstance(self._open, _OpenReasoning) else self._begin(_OpenReasoning(self._next()))
                return events + self._grown(text)
            case CallBegan():
                return self._begin(_OpenCall(self._next(), part))
            case CallArguments(text=text):
                assert isinstance(self._open, _OpenCall), "arguments without a call"
                return self._grown(text)

    def finish(self, status: ItemStatus, logprobs: Sequence[Logprob] = ()) -> list[Event]:
        """Closes what is open; `logprobs` are of last tokens that gave no text. Nothing at all is an empty message."""
        events = [] if self._has_answer() else self._begin(_OpenMessage(self._next()))
        if logprobs and isinstance(self._open, _OpenMessage):
            events += self._open.grow("", logprobs)
        return events + self.close(status)

    def _has_answer(self) -> bool:
        """Whether there is more than reasoning."""
        answers = (MessageItem, FunctionCallItem)
        return isinstance(self._open, _OpenMessage | _OpenCall) or any(isinstance(item, answers) for item in self.items)

    def close(self, status: ItemStatus) -> list[Event]:
        """Closes the open item, if there is one."""
        if self._open is None:
            return []
        item, events = self._open.end(status)
        self._open = None
        self.items.append(item)
        return events

    def _content(self, text: str, logprobs: Sequence[Logprob]) -> list[Event]:
        events = [] if isinstance(self._open, _OpenMessage) else self._begin(_OpenMessage(self._next()))
        assert isinstance(self._open, _OpenMessage)
        return events + self._open.grow(text, logprobs)

    def _grown(self, text: str) -> list[Event]:
        assert self._open is not None
        return self._open.grow(text) if text else []

    def _begin(self, item: _OpenItem) -> list[Event]:
        events = self.close("completed")
        self._open = item
        return events + item.begin()

    def _next(self) -> int:
        """The index of the item after those that there are."""
        return len(self.items) + (self._open is not None)


def _short(logprobs: Sequence[Logprob]) -> list[Logprob]:
    """Logprobs as text events carry them: without bytes."""
    return [
        {
            "token": entry["token"],
            "logprob": entry["logprob"],
            "top_logprobs": [{"token": top["token"], "logprob": top["logprob"]} for top in entry["top_logprobs"]],
        }
        for entry in logprobs
    ]
