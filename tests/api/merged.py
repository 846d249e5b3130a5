"""Puts a stream's events together again, by nothing but the rules that clients know."""

from typing import Any

TEXTS = {"content", "reasoning_content", "reasoning"}
LISTS = ("token_ids",)
ONCE = ("prompt_logprobs", "prompt_token_ids", "finish_reason", "stop_reason", "matched_stop")


def merged(events: list[Any]) -> dict[str, Any]:
    """The whole answer that a stream of completions or of chat chunks tells of."""
    assert events[-1] == "[DONE]"
    answer: dict[str, Any] = {"choices": {}}
    for event in events[:-1]:
        for name in ("model", "system_fingerprint"):
            assert answer.setdefault(name, event[name]) == event[name]
        for choice in event["choices"]:
            _add(answer["choices"].setdefault(choice["index"], {"index": choice["index"], "logprobs": None}), choice)
        _once(answer, event)
        if not event["choices"] and event["usage"] is not None:
            assert answer.setdefault("usage", event["usage"]) is event["usage"]
    answer["choices"] = [answer["choices"][index] for index in sorted(answer["choices"])]
    return answer


def _add(choice: dict[str, Any], chunk: dict[str, Any]) -> None:
    assert choice.get("finish_reason") is None, "a chunk behind the last one"
    if "delta" in chunk:
        message = choice.setdefault("message", {"role": None, "content": None, "refusal": None})
        assert set(chunk["delta"]) <= {"role", "tool_calls", *TEXTS}
        message["role"] = chunk["delta"].get("role", message["role"])
        for name in TEXTS & chunk["delta"].keys():
            message[name] = _plus(message.get(name), chunk["delta"][name])
        for call in chunk["delta"].get("tool_calls", []):
            _add_call(message.setdefault("tool_calls", []), call)
    else:
        choice["text"] = choice.get("text", "") + chunk["text"]
    if chunk["logprobs"] is not None:
        if choice["logprobs"] is None:
            choice["logprobs"] = {name: [] for name, values in chunk["logprobs"].items() if values is not None}
        for name, values in chunk["logprobs"].items():
            if values is None:
                choice["logprobs"][name] = None
            else:
                choice["logprobs"][name].extend(values)
    for name in LISTS:
        if name in chunk:
            choice.setdefault(name, []).extend(chunk[name])
    _once(choice, chunk)


def _plus(text: str | None, more: str | None) -> str | None:
    return text if more is None else (text or "") + more


def _add_call(calls: list[dict[str, Any]], part: dict[str, Any]) -> None:
    """The first part of a call has its id and name; later ones have only further arguments."""
    if part["index"] == len(calls):
        calls.append({name: part[name] for name in ("id", "type", "function")})
    else:
        assert part.keys() == {"index", "function"}
        assert part["function"].keys() == {"arguments"}
        calls[part["index"]]["function"]["arguments"] += part["function"]["arguments"]


def _once(whole: dict[str, Any], part: dict[str, Any]) -> None:
    for name in ONCE:
        if name in part:
            assert whole.get(name) is None, f"{name} came twice"
            whole[name] = part[name]


def comparable(answer: dict[str, Any]) -> dict[str, Any]:
    """What a stream and a whole answer have in common: all but what names the one or the other."""
    return {name: value for name, value in answer.items() if name not in ("id", "created", "object")}
