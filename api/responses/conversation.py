"""Items become the messages of a chat, so that both surfaces render the same conversation alike.

What one answer consists of, its reasoning, text and calls, is one message of the assistant's. Each message remembers
which field of the body it came from, for errors.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence

import msgspec

from api.responses.items import FunctionCallItem, FunctionCallOutputItem, Item, MessageItem, ReasoningItem
from api.schema import CalledFunction, ChatMessage, ToolCall
from runtime.errors import RequestError


class Turn(msgspec.Struct, frozen=True):
    """One message, and the name of the field that it came from."""

    message: ChatMessage
    param: str

    @property
    def is_system(self) -> bool:
        """Whether it instructs the model."""
        return self.message.role in ("system", "developer")


def to_turns(items: Iterable[tuple[str, Item]]) -> list[Turn]:
    """The messages of a conversation, given as items with their names. Raises RequestError for answers to no call."""
    turns: list[Turn] = []
    call_ids: set[str] = set()
    for param, item in items:
        if isinstance(item, FunctionCallOutputItem) and item.call_id not in call_ids:
            raise RequestError(
                f"{param}.call_id: no function call before it has the id {item.call_id[:40]!r}",
                param=f"{param}.call_id",
            )
        if isinstance(item, FunctionCallItem):
            call_ids.add(item.call_id)
        joined = _joined(turns[-1].message, item) if turns else None
        if joined is None:
            turns.append(Turn(_message(item), param))
        else:
            turns[-1] = Turn(joined, turns[-1].param)
    return turns


def _message(item: Item) -> ChatMessage:
    match item:
        case MessageItem(role=role):
            return ChatMessage(role=role, content=_text(item))
        case FunctionCallItem():
            return ChatMessage(role="assistant", tool_calls=[_call(item)])
        case FunctionCallOutputItem(call_id=call_id, output=output):
            return ChatMessage(role="tool", content=output, tool_call_id=call_id)
        case ReasoningItem():
            return ChatMessage(role="assistant", content="", reasoning_content=_text(item))


def _joined(last: ChatMessage, item: Item) -> ChatMessage | None:
    """The last message with the item in it, or None where the item begins a new one."""
    if last.role != "assistant":
        return None
    match item:
        case FunctionCallItem():
            calls = [*(last.tool_calls or []), _call(item)]
            return msgspec.structs.replace(last, content=last.content or None, tool_calls=calls)
        case MessageItem(role="assistant") if last.tool_calls or (last.reasoning_content and not last.content):
            assert not isinstance(last.content, list)
            return msgspec.structs.replace(last, content=(last.content or "") + _text(item))
    return None


def _text(item: MessageItem | ReasoningItem) -> str:
    return "".join(part.text for part in item.content)


def _call(item: FunctionCallItem) -> ToolCall:
    return ToolCall(id=item.call_id, function=CalledFunction(name=item.name, arguments=item.arguments))


def fit(turns: Sequence[Turn], fits: Callable[[list[Turn]], bool]) -> list[Turn]:
    """The longest end of a conversation that fits, behind what instructs the model at the beginning.

    Calls go together with what they gave. Where nothing fits, the shortest end, which has only the latest turn.
    `fits` holds for every end of one for which it holds; it is asked about log2 of their number.
    """
    head = next((index for index, turn in enumerate(turns) if not turn.is_system), len(turns))
    starts = [index for index in range(head, len(turns)) if turns[index].message.role != "tool"] or [head]

    def shortened(number: int) -> list[Turn]:
        return [*turns[:head], *turns[starts[number] :]]

    last = len(starts) - 1
    return shortened(bisect_left(range(last), True, key=lambda number: fits(shortened(number))))
