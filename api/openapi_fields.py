"""What each request field means and which values it may have, for `/openapi.json` and `docs/api.md`.

The types come from the structs that bodies are decoded into; here stands what a type does not tell. Limits are JSON
Schema keywords. Keywords for numbers hold for numbers only, so they need no care for null.
"""

from typing import Any

import msgspec

from api.chat import ROLES
from api.schema import UNSUPPORTED
from api.text_options import MAX_STOP_CHARS, MAX_STOP_STRINGS
from api.validate import MAX_SALT_CHARS
from runtime.sampling_params import MAX_LOGIT_BIAS, MAX_LOGPROBS, MAX_STOP_IDS

_TOKEN_ID = {"type": "integer", "minimum": 0}


class Note(msgspec.Struct, frozen=True):
    """One field: its meaning and limits. One that is `needed` may be neither absent nor null."""

    meaning: str
    limits: dict[str, Any] = {}
    needed: bool = False


def between(low: float, high: float) -> dict[str, Any]:
    """Both ends are allowed."""
    return {"minimum": low, "maximum": high}


_SHARED = {
    "model": Note("A served name; the first one without it."),
    "max_tokens": Note("Most tokens of each answer.", {"minimum": 1}),
    "temperature": Note("0 is greedy. The model's own default without it.", between(0, 2)),
    "top_p": Note(
        "Keeps the likeliest tokens that have this much probability together.",
        {"exclusiveMinimum": 0, "maximum": 1},
    ),
    "top_k": Note("Keeps this many of the likeliest tokens; 0 and -1 keep all.", between(-1, 2**31 - 1)),
    "min_p": Note("Keeps tokens that are at least this likely, relative to the likeliest.", between(0, 1)),
    "presence_penalty": Note("Taken from the logit of every token that the answer has already.", between(-2, 2)),
    "frequency_penalty": Note("Likewise, for each time that the token occurred.", between(-2, 2)),
    "repetition_penalty": Note(
        "Divides positive logits, and multiplies negative ones, of tokens in prompt and answer.", between(0.01, 10)
    ),
    "logit_bias": Note(
        "Added to logits, by token id.",
        {
            "maxProperties": MAX_LOGIT_BIAS,
            "propertyNames": {"pattern": "^[0-9]{1,10}$"},
            "additionalProperties": {"type": "number", "minimum": -100, "maximum": 100},
        },
    ),
    "seed": Note("The same request with the same seed gets the same answer.", between(-(2**63), 2**63 - 1)),
    "n": Note("How many choices to draw for each prompt.", {"minimum": 1}),
    "stop": Note(
        "Texts that end an answer, before they show.",
        {
            "anyOf": [
                {"type": "string", "minLength": 1, "maxLength": MAX_STOP_CHARS},
                {
                    "type": "array",
                    "maxItems": MAX_STOP_STRINGS,
                    "items": {"type": "string", "minLength": 1, "maxLength": MAX_STOP_CHARS},
                },
                {"type": "null"},
            ]
        },
    ),
    "stop_token_ids": Note(
        "Tokens that end an answer, besides the model's own.", {"items": _TOKEN_ID, "maxItems": MAX_STOP_IDS}
    ),
    "cache_salt": Note(
        "Only requests with the same salt share cached prefixes.", {"minLength": 1, "maxLength": MAX_SALT_CHARS}
    ),
    "ignore_eos": Note("Goes on behind the model's own end of text."),
    "min_tokens": Note("No answer ends before it has this many tokens.", {"minimum": 0}),
    "stream": Note("Sends the answer as server-sent events, as it comes."),
    "stream_options": Note("Only with `stream`."),
}

_CHAT = _SHARED | {
    "messages": Note("The conversation.", {"minItems": 1}, needed=True),
    "max_completion_tokens": Note("Goes before `max_tokens`.", {"minimum": 1}),
    "logprobs": Note("Sends the log-probability of every token of the answer."),
    "top_logprobs": Note("And so many alternatives to each; only with `logprobs`.", between(0, MAX_LOGPROBS)),
    "tools": Note("Functions that the model may call."),
    "tool_choice": Note("Whether tools may or must be called, and which."),
    "response_format": Note("The form that the answer has to have."),
}

_COMPLETION = _SHARED | {
    "prompt": Note("A text, a list of token ids, or a list of either: one prompt each.", needed=True),
    "logprobs": Note("Sends log-probabilities, with so many alternatives to each token.", between(0, MAX_LOGPROBS)),
    "best_of": Note("Only a value equal to `n` is served."),
}

NOTES: dict[str, dict[str, Note]] = {
    "ChatBody": _CHAT,
    "CompletionBody": _COMPLETION,
    "StreamOptions": {
        "include_usage": Note("Sends a last chunk with the token counts."),
        "continuous_usage_stats": Note("Sends the counts so far with every chunk; only with `include_usage`."),
    },
    "ChatMessage": {
        "role": Note("Who speaks; `developer` is the same as `system`.", {"enum": list(ROLES)}),
        "content": Note("The text, or its parts."),
        "name": Note("The speaker's name, for templates that show one."),
        "tool_calls": Note("Calls that the assistant made in this turn."),
        "tool_call_id": Note("The call that a turn of role `tool` answers."),
        "reasoning_content": Note("What the assistant thought, for templates that show it."),
        "reasoning": Note("Another name of `reasoning_content`."),
    },
    "ContentPart": {
        "type": Note("Only text is served.", {"enum": ["text"]}),
        "text": Note("The text.", needed=True),
    },
    "ToolCall": {
        "function": Note("What was called."),
        "id": Note("The call's id."),
        "type": Note("Only functions are called."),
    },
    "CalledFunction": {
        "name": Note("The function's name."),
        "arguments": Note("Its arguments, as JSON text or as an object."),
    },
    "DrainBody": {
        "timeout_s": Note("What still runs after so many seconds is moved to another worker."),
    },
    "ChaosBody": {
        "spec": Note("What is to fail and when, as `--chaos` takes it."),
    },
}

_REFUSED = Note("Not served: refused by name unless it is null, false, 0 or empty.")


def note_of(struct: str, field: str) -> Note | None:
    """The note of a struct's field; None for the fields of answers, which speak for themselves."""
    notes = NOTES.get(struct)
    if notes is None:
        return None
    return notes.get(field) or (_REFUSED if field in UNSUPPORTED else None)


def annotate(components: dict[str, Any]) -> dict[str, Any]:
    """Component schemas with meanings and limits added."""
    return {name: _annotated(name, schema) for name, schema in components.items()}


def _annotated(name: str, schema: dict[str, Any]) -> dict[str, Any]:
    if name not in NOTES:
        return schema
    required = [*schema.get("required", [])]
    properties = {}
    for field, one in schema["properties"].items():
        described = {key: value for key, value in one.items() if (key, value) != ("default", None)}
        note = note_of(name, field)
        if note is not None:
            described = {**(_without_null(described) if note.needed else described), **note.limits}
            described["description"] = note.meaning
            required += [field] if note.needed and field not in required else []
        properties[field] = described
    return {**schema, "properties": properties, "required": required}


def _without_null(schema: dict[str, Any]) -> dict[str, Any]:
    """Of `X | None` only `X`."""
    kinds = [kind for kind in schema.get("anyOf", []) if kind != {"type": "null"}]
    rest = {key: value for key, value in schema.items() if key != "anyOf"}
    return rest | ({"anyOf": kinds} if len(kinds) > 1 else kinds[0] if kinds else {})
