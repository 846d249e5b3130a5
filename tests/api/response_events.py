"""The published rules of a response's events, written down by hand, and OpenAI's own types as a second opinion."""

import json
from typing import Any, cast

from openai.types.responses import Response, ResponseStreamEvent
from pydantic import BaseModel, TypeAdapter

LAST = {"response.completed": "completed", "response.incomplete": "incomplete", "response.failed": "failed"}

EXTRA_FIELDS = {"Response.store", "Response.runtime_timing", "ResponseFunctionCallArgumentsDoneEvent.name"}
"""What we send and the package's types do not know."""

_event_type: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)


def parse_stream(data: bytes) -> list[dict[str, Any]]:
    """The events of a whole stream: each is a name and its JSON, which names it too. Comments are left out."""
    assert b"\r" not in data
    assert data.endswith(b"\n\n")
    events = []
    for frame in data[:-2].decode().split("\n\n"):
        if frame.startswith(": "):
            continue
        name, payload = frame.split("\n")
        assert payload.startswith("data: ")
        event = json.loads(payload.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        events.append(event)
    return events


def check_events(events: list[dict[str, Any]]) -> dict[str, Any]:
    """Checks a stream from its first event to its last; returns the response of the last."""
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    for event in events:
        check_type(event)
    kinds = [event["type"] for event in events]
    begin = ["response.created", "response.queued"] if "response.queued" in kinds else ["response.created"]
    if kinds[len(begin)] in LAST:  # it failed, or was cancelled, before it began
        assert kinds[:-1] == begin
    else:
        begin.append("response.in_progress")
        assert kinds[: len(begin)] == begin
    assert sum(kind in LAST for kind in kinds) == 1
    assert kinds[-1] in LAST
    last = cast(dict[str, Any], events[-1]["response"])
    assert last["status"] in (LAST[kinds[-1]], "cancelled")
    assert {event["response"]["id"] for event in events if "response" in event} == {last["id"]}
    assert last["output"] == _items(events[len(begin) : -1])
    return last


def _items(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The items that the events between the first and the last tell of, one after the other."""
    items: list[dict[str, Any]] = []
    rest = list(events)
    while rest:
        added = rest.pop(0)
        assert added["type"] == "response.output_item.added"
        assert added["output_index"] == len(items)
        item = added["item"]
        assert item["status"] == "in_progress"
        own = []
        while rest[0]["type"] != "response.output_item.done":
            own.append(rest.pop(0))
            assert own[-1]["output_index"] == len(items)
            assert own[-1]["item_id"] == item["id"]
        done = rest.pop(0)
        assert done["output_index"] == len(items)
        items.append(_CHECKS[item["type"]](item, own))
        assert done["item"] == items[-1] | {"status": done["item"]["status"]}
        assert done["item"]["status"] in ("completed", "incomplete")
        items[-1] = done["item"]
    return items


def _message(item: dict[str, Any], events: list[dict[str, Any]]) -> dict[str, Any]:
    assert item["role"] == "assistant"
    part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
    whole = _part(item, events, part, "response.output_text")
    deltas, done = events[1:-2], events[-2]
    assert done["logprobs"] == [entry for delta in deltas for entry in delta["logprobs"]]
    assert done["logprobs"] == [_without_bytes(entry) for entry in whole["content"][0]["logprobs"]]
    return whole


def _reasoning(item: dict[str, Any], events: list[dict[str, Any]]) -> dict[str, Any]:
    assert item["summary"] == []
    return _part(item, events, {"type": "reasoning_text", "text": ""}, "response.reasoning_text")


def _part(item: dict[str, Any], events: list[dict[str, Any]], part: dict[str, Any], name: str) -> dict[str, Any]:
    """One part: added empty, grown, done, and done again as a part."""
    added, *deltas, done, part_done = events
    assert (added["type"], added["content_index"], added["part"]) == ("response.content_part.added", 0, part)
    assert {event["type"] for event in deltas} <= {f"{name}.delta"}
    assert {event["content_index"] for event in events} == {0}
    text = "".join(event["delta"] for event in deltas)
    assert (done["type"], done["text"]) == (f"{name}.done", text)
    assert (part_done["type"], part_done["part"]["text"]) == ("response.content_part.done", text)
    assert item["content"] == []
    return item | {"content": [part_done["part"]]}


def _call(item: dict[str, Any], events: list[dict[str, Any]]) -> dict[str, Any]:
    *deltas, done = events
    name = "response.function_call_arguments"
    assert {event["type"] for event in deltas} <= {f"{name}.delta"}
    assert item["arguments"] == ""
    assert item["call_id"]
    text = "".join(event["delta"] for event in deltas)
    assert (done["type"], done["arguments"]) == (f"{name}.done", text)
    return item | {"arguments": text}


_CHECKS = {"message": _message, "reasoning": _reasoning, "function_call": _call}


def _without_bytes(entry: dict[str, Any]) -> dict[str, Any]:
    top = [{key: value for key, value in other.items() if key != "bytes"} for other in entry["top_logprobs"]]
    return {"token": entry["token"], "logprob": entry["logprob"], "top_logprobs": top}


def check_type(event: dict[str, Any]) -> None:
    """OpenAI's package knows the event, every value has its type, and no field is there that it does not know."""
    check_fields(_event_type.validate_python(event))


def check_response(response: dict[str, Any]) -> None:
    """The same for a whole response."""
    check_fields(Response.model_validate(response))


def check_fields(value: Any) -> None:
    """Refuses fields that a type of the package's does not declare, however deep they are."""
    if isinstance(value, BaseModel):
        kind = type(value).__name__
        assert {f"{kind}.{name}" for name in value.model_extra or {}} <= EXTRA_FIELDS, value
        for name in type(value).model_fields:
            check_fields(getattr(value, name))
    elif isinstance(value, list | tuple):
        for entry in value:
            check_fields(entry)
