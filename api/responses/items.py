"""The items of a conversation, as clients send them, as answers carry them, and as they are kept.

`parse_input` takes every form that clients use and gives one: the item as `input_items` shows it, with an id. Errors
name the item and its field.
"""

import uuid
from collections.abc import Callable
from typing import Any, Literal

import msgspec
import orjson

from runtime.errors import RequestError

ItemStatus = Literal["in_progress", "completed", "incomplete"]
Role = Literal["user", "system", "developer", "assistant"]

MAX_ITEMS = 10_000
REFERENCE = "item_reference"
_SHOWN = 40


class InputText(msgspec.Struct, frozen=True, tag_field="type", tag="input_text"):
    """Text that a client sent."""

    text: str


class OutputText(msgspec.Struct, frozen=True, tag_field="type", tag="output_text"):
    """Text that the model wrote; `logprobs` in OpenAI's shape where they were asked for."""

    text: str
    annotations: tuple[()] = ()
    logprobs: tuple[dict[str, Any], ...] = ()


class ReasoningText(msgspec.Struct, frozen=True, tag_field="type", tag="reasoning_text"):
    """Text that the model thought."""

    text: str


class MessageItem(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="message"):
    """A turn of one side."""

    id: str
    status: ItemStatus = "completed"
    role: Role
    content: tuple[InputText | OutputText, ...]


class FunctionCallItem(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="function_call"):
    """A call that the model made; `arguments` is JSON text, cut short in an incomplete one."""

    id: str
    status: ItemStatus = "completed"
    call_id: str
    name: str
    arguments: str


class FunctionCallOutputItem(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="function_call_output"):
    """What a call gave."""

    id: str
    status: ItemStatus = "completed"
    call_id: str
    output: str


class ReasoningItem(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="reasoning"):
    """What the model thought before it answered. Summaries are not made."""

    id: str
    status: ItemStatus = "completed"
    summary: tuple[()] = ()
    content: tuple[ReasoningText, ...]


Item = MessageItem | FunctionCallItem | FunctionCallOutputItem | ReasoningItem
OutputItem = MessageItem | FunctionCallItem | ReasoningItem

FindItem = Callable[[str], Item | None]
"""Finds an item of a kept response by its id."""


def new_id(prefix: str) -> str:
    """A fresh id, such as `msg_…`."""
    return f"{prefix}_{uuid.uuid4().hex}"


def parse_input(given: str | list[Any] | None, find: FindItem) -> tuple[Item, ...]:
    """The items of `input`; a text is a message of the user's. References are looked up with `find`.

    Raises RequestError naming the item's field.
    """
    if not given:
        raise RequestError("input: must not be empty", param="input")
    if isinstance(given, str):
        return (MessageItem(id=new_id("msg"), role="user", content=(InputText(given),)),)
    if len(given) > MAX_ITEMS:
        raise RequestError(f"input: at most {MAX_ITEMS} items, got {len(given)}", param="input")
    return tuple(_item(_Field(f"input[{index}]", item), find) for index, item in enumerate(given))


class _Field:
    """A value of the body and the name by which errors call it."""

    def __init__(self, name: str, value: Any) -> None:
        self.name = name
        self.value = value

    def refuse(self, reason: str) -> RequestError:
        return RequestError(f"{self.name}: {reason}", param=self.name)

    def __getitem__(self, key: str) -> "_Field":
        """The field of an object; its value is None where the client left it out."""
        if not isinstance(self.value, dict):
            raise self.refuse(f"must be an object, got {shown(self.value)}")
        return _Field(f"{self.name}.{key}", self.value.get(key))

    def elements(self) -> "list[_Field]":
        if not isinstance(self.value, list):
            raise self.refuse(f"must be an array, got {shown(self.value)}")
        return [_Field(f"{self.name}[{index}]", value) for index, value in enumerate(self.value)]

    def text(self, default: str | None = None) -> str:
        if self.value is None and default is not None:
            return default
        if not isinstance(self.value, str):
            raise self.refuse(f"must be a string, got {shown(self.value)}")
        return self.value


def shown(value: Any) -> str:
    """A client's JSON value for a message, cut short."""
    try:
        return orjson.dumps(value)[: 4 * _SHOWN].decode(errors="ignore")[:_SHOWN]
    except orjson.JSONEncodeError:
        return "a value that is too large or too deep"


def _item(field: _Field, find: FindItem) -> Item:
    is_bare = field["type"].value is None and field["role"].value is None and field["id"].value is not None
    kind = REFERENCE if is_bare else field["type"].text("message")
    if kind == REFERENCE:
        return _referred(field["id"], find)
    read = _READERS.get(kind)
    if read is None:
        raise field["type"].refuse(f"must be one of {', '.join((*_READERS, REFERENCE))}, got {shown(kind)}")
    return read(field)


def _referred(field: _Field, find: FindItem) -> Item:
    item = find(field.text())
    if item is None:
        reason = f"{field.name}: no response that is kept here has an item {shown(field.value)}"
        raise RequestError(reason, param=field.name, status=404, code="item_not_found")
    return item


def _message(field: _Field) -> Item:
    role: Role
    match field["role"].value:
        case "user" | "system" | "developer" | "assistant" as role:
            pass
        case other:
            raise field["role"].refuse(f"must be one of user, system, developer, assistant, got {shown(other)}")
    texts = _texts(field["content"], ("input_text", "output_text", "text", "refusal"))
    part = OutputText if role == "assistant" else InputText
    item_id = field["id"].text(new_id("msg"))
    return MessageItem(id=item_id, role=role, content=tuple(part(text) for text in texts))


def _function_call(field: _Field) -> Item:
    return FunctionCallItem(
        id=field["id"].text(new_id("fc")),
        call_id=field["call_id"].text(),
        name=field["name"].text(),
        arguments=field["arguments"].text(),
    )


def _function_call_output(field: _Field) -> Item:
    return FunctionCallOutputItem(
        id=field["id"].text(new_id("fco")),
        call_id=field["call_id"].text(),
        output="".join(_texts(field["output"], ("input_text", "output_text", "text"))),
    )


def _reasoning(field: _Field) -> Item:
    """Its own text, or else the summaries that another server made of it."""
    if field["encrypted_content"].value is not None:
        raise field["encrypted_content"].refuse("cannot be read here; allowed: content of type reasoning_text")
    content, summary = field["content"], field["summary"]
    if content.value:
        texts = _texts(content, ("reasoning_text",))
    else:
        texts = _texts(summary, ("summary_text",)) if summary.value else []
    return ReasoningItem(id=field["id"].text(new_id("rs")), content=tuple(ReasoningText(text) for text in texts))


def _texts(field: _Field, kinds: tuple[str, ...]) -> list[str]:
    """The texts of a string or of parts, each of one of the kinds."""
    if isinstance(field.value, str):
        return [field.value]
    texts = []
    for part in field.elements():
        kind = part["type"].text()
        if kind not in kinds:
            raise part["type"].refuse(f"must be one of {', '.join(kinds)}, got {shown(kind)}")
        texts.append(part["refusal" if kind == "refusal" else "text"].text())
    return texts


_READERS: dict[str, Callable[[_Field], Item]] = {
    "message": _message,
    "function_call": _function_call,
    "function_call_output": _function_call_output,
    "reasoning": _reasoning,
}
