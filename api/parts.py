"""One choice's text as parts, with what the answer's shape needs to know of it beside them."""

from collections.abc import Sequence
from typing import Any

from actors.messages import Delta, FinishReason
from api.parsers.parts import CallArguments, CallBegan, Content, OutputParser, Part, Reasoning


class ChoiceParts:
    """Feeds a choice's deltas to its parser and counts.

    `num_reasoning_tokens` counts tokens up to the one that closes the block, tags included; where several tokens come
    in one delta, they count together.
    """

    def __init__(self, parser: OutputParser) -> None:
        self._parser = parser
        self._num_open_tokens = 0
        self.num_reasoning_tokens = 0
        self.num_calls = 0

    def add(self, delta: Delta) -> list[Part]:
        """The parts that the delta releases; its last one releases all."""
        before = self._parser.is_reasoning
        parts = self._parser.push(delta.text)
        if delta.finish is not None:
            parts += self._parser.finish()
        self._count(before, len(delta.tokens))
        self.num_calls += sum(isinstance(part, CallBegan) for part in parts)
        return parts

    def _count(self, before: bool | None, num_tokens: int) -> None:
        """Tokens of a beginning that is not told yet wait until it is."""
        now = self._parser.is_reasoning
        if now is None:
            self._num_open_tokens += num_tokens
        elif before or now:
            self.num_reasoning_tokens += self._num_open_tokens + num_tokens
            self._num_open_tokens = 0

    def finish_reason(self, finish: FinishReason | None, *, is_legacy: bool = False) -> str | None:
        """What clients are told: an answer that ended by itself and has calls ended for them."""
        if finish == "stop" and self.num_calls:
            return "function_call" if is_legacy else "tool_calls"
        return finish


def whole_message(parts: Sequence[Part], *, shows_reasoning: bool, is_legacy: bool) -> dict[str, Any]:
    """The assistant's message. Its content is null when it has calls and nothing else."""
    reasoning = "".join(part.text for part in parts if isinstance(part, Reasoning)) if shows_reasoning else ""
    content = "".join(part.text for part in parts if isinstance(part, Content))
    calls = _whole_calls(parts)
    message: dict[str, Any] = {"role": "assistant", "content": content or (None if calls else ""), "refusal": None}
    if reasoning:
        message |= {"reasoning_content": reasoning, "reasoning": reasoning}
    if calls and is_legacy:
        message["function_call"] = calls[0]["function"]
    elif calls:
        message["tool_calls"] = calls
    return message


def _whole_calls(parts: Sequence[Part]) -> list[dict[str, Any]]:
    calls: list[dict[str, Any]] = []
    for part in parts:
        if isinstance(part, CallBegan):
            calls.append({"id": part.id, "type": "function", "function": {"name": part.name, "arguments": ""}})
        elif isinstance(part, CallArguments):
            calls[part.index]["function"]["arguments"] += part.text
    return calls


def part_delta(part: Part, *, is_legacy: bool) -> dict[str, Any]:
    """A part as a chunk's delta: a call's first has its id and name, further ones pieces of its arguments."""
    match part:
        case Reasoning(text):
            return {"reasoning_content": text, "reasoning": text}
        case Content(text):
            return {"content": text}
        case CallBegan(index, call_id, name):
            function = {"name": name, "arguments": ""}
            call = {"index": index, "id": call_id, "type": "function", "function": function}
        case CallArguments(index, text):
            function = {"arguments": text}
            call = {"index": index, "function": function}
    return {"function_call": function} if is_legacy else {"tool_calls": [call]}
