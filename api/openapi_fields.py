"""What each request field means and which values it may have, for `/openapi.json` and `docs/api.md`.

The types come from the structs that bodies are decoded into; here stands what a type does not tell. Limits are JSON
Schema keywords. Keywords for numbers hold for numbers only, so they need no care for null.
"""

from typing import Any

import msgspec

from api.bad_words import MAX_BAD_WORD_CHARS, MAX_BAD_WORDS
from api.chat import ROLES
from api.chat_prompt import REASONING_EFFORTS
from api.grammar_text import MAX_CHOICES, MAX_GRAMMAR_CHARS, MAX_REGEX_CHARS
from api.responses.prepare import (
    ENCRYPTED,
    LOGPROBS,
    MAX_LABEL_CHARS,
    MAX_METADATA,
    MAX_METADATA_KEY,
    MAX_METADATA_VALUE,
    SUMMARIES,
    TIERS,
    VERBOSITIES,
)
from api.responses.schema import REFUSED
from api.schema import UNSUPPORTED
from api.structured import MAX_THINKING_TOKENS
from api.text_options import MAX_STOP_CHARS, MAX_STOP_STRINGS
from api.validate import MAX_PRIORITY, MAX_SALT_CHARS, MAX_TIMEOUT_S
from runtime.sampling_params import MAX_LOGIT_BIAS, MAX_LOGPROBS, MAX_STOP_IDS

_CHOICES = {"minItems": 1, "maxItems": MAX_CHOICES, "items": {"type": "string", "minLength": 1}}
_BAD_WORD = {"type": "string", "minLength": 1, "maxLength": MAX_BAD_WORD_CHARS}
_TOKEN_ID = {"type": "integer", "minimum": 0}


class Note(msgspec.Struct, frozen=True):
    """One field: its meaning and limits. One that is `needed` may be neither absent nor null."""

    meaning: str
    limits: dict[str, Any] = {}
    needed: bool = False


def between(low: float, high: float) -> dict[str, Any]:
    """Both ends are allowed."""
    return {"minimum": low, "maximum": high}


def _enum(*values: str) -> dict[str, Any]:
    """Null is always allowed as well."""
    return {"enum": [*values, None]}


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
    "allowed_token_ids": Note("Only these tokens are sampled.", {"items": _TOKEN_ID, "minItems": 1}),
    "prompt_logprobs": Note(
        "Sends the log-probabilities of the prompt's tokens, with so many alternatives to each.",
        between(0, MAX_LOGPROBS),
    ),
    "include_stop_str_in_output": Note("Shows the stop string that ended an answer."),
    "skip_special_tokens": Note("Leaves special tokens out of texts; true without it."),
    "spaces_between_special_tokens": Note("Only false is served where special tokens are shown."),
    "return_token_ids": Note("Sends the ids of the prompt's and the answer's tokens."),
    "return_tokens_as_token_ids": Note("Logprobs name tokens by their ids, as `token_id:7`."),
    "truncate_prompt_tokens": Note(
        "Keeps so many tokens of the prompt's end; -1 keeps what leaves room for the answer.", {"minimum": -1}
    ),
    "add_special_tokens": Note("Whether the tokenizer adds its special tokens to prompts that are texts."),
    "response_format": Note("The form that the answer has to have."),
    "structured_outputs": Note("The form that the answer has to have, said by one key."),
    "guided_json": Note("An older name of `structured_outputs.json`."),
    "guided_regex": Note(
        "An older name of `structured_outputs.regex`.", {"minLength": 1, "maxLength": MAX_REGEX_CHARS}
    ),
    "guided_choice": Note("An older name of `structured_outputs.choice`.", _CHOICES),
    "guided_grammar": Note(
        "An older name of `structured_outputs.grammar`.", {"minLength": 1, "maxLength": MAX_GRAMMAR_CHARS}
    ),
    "bad_words": Note("Texts that no answer may contain.", {"maxItems": MAX_BAD_WORDS, "items": _BAD_WORD}),
    "thinking_token_budget": Note("Most tokens of a block of thoughts.", between(0, MAX_THINKING_TOKENS)),
    "priority": Note("Waiting requests with a lower number go first.", between(-MAX_PRIORITY, MAX_PRIORITY)),
    "timeout_s": Note(
        "An answer that is not complete after so many seconds fails.",
        {"exclusiveMinimum": 0, "maximum": MAX_TIMEOUT_S},
    ),
}

_CHAT = _SHARED | {
    "messages": Note("The conversation.", {"minItems": 1}, needed=True),
    "max_completion_tokens": Note("Goes before `max_tokens`.", {"minimum": 1}),
    "logprobs": Note("Sends the log-probability of every token of the answer."),
    "top_logprobs": Note("And so many alternatives to each; only with `logprobs`.", between(0, MAX_LOGPROBS)),
    "tools": Note("Functions that the model may call."),
    "tool_choice": Note("Whether tools may or must be called, and which."),
    "modalities": Note(
        "What the answer is made of: text and nothing else.", {"items": {"type": "string", "enum": ["text"]}}
    ),
    "reasoning_effort": Note("How much to think, for templates that know it.", _enum(*REASONING_EFFORTS)),
    "add_generation_prompt": Note("Whether the template begins the assistant's turn; true without it."),
    "continue_final_message": Note("Goes on in the last message, which is the assistant's."),
    "chat_template_kwargs": Note("The template's own variables."),
    "parallel_tool_calls": Note("Whether several tools may be called at once; true without it."),
    "functions": Note("The older name of `tools`: a list of their functions."),
    "function_call": Note("The older name of `tool_choice`."),
    "include_reasoning": Note("Whether to send what the model thought; true without it."),
    "echo": Note("Not served for chat: refused."),
}

_COMPLETION = _SHARED | {
    "prompt": Note("A text, a list of token ids, or a list of either: one prompt each.", needed=True),
    "logprobs": Note("Sends log-probabilities, with so many alternatives to each token.", between(0, MAX_LOGPROBS)),
    "best_of": Note("Only a value equal to `n` is served."),
    "echo": Note("Shows the prompt before the answer; `max_tokens` may then be 0."),
}

_RESPONSES = _SHARED | {
    "input": Note("A text, or a list of items.", {"minItems": 1, "minLength": 1}, needed=True),
    "instructions": Note("A first turn of the system's, which is not kept with the conversation."),
    "previous_response_id": Note("Goes on from a response that was kept."),
    "max_output_tokens": Note("Most tokens of the answer.", {"minimum": 1}),
    "max_tool_calls": Note("Shown again: there are no tools that the server runs itself.", between(1, 2**31 - 1)),
    "background": Note("Answers at once with a response that is queued; needs `store`."),
    "store": Note("Whether to keep the response; true without it."),
    "include": Note("What to add to the output.", {"items": {"enum": [LOGPROBS, ENCRYPTED]}}),
    "metadata": Note(
        "Shown again.",
        {
            "maxProperties": MAX_METADATA,
            "propertyNames": {"maxLength": MAX_METADATA_KEY},
            "additionalProperties": {"type": "string", "maxLength": MAX_METADATA_VALUE},
        },
    ),
    "n": Note("Only 1 is served.", between(1, 1)),
    "parallel_tool_calls": Note("Whether the model may call several tools at once."),
    "reasoning": Note("How to think."),
    "service_tier": Note("Changes nothing: there is one, `default`, which answers show.", _enum(*TIERS)),
    "text": Note("The form of the answer's text."),
    "tool_choice": Note("Whether tools may or must be called, and which."),
    "tools": Note("Functions that the model may call."),
    "top_logprobs": Note("Sends log-probabilities, with so many alternatives to each token.", between(0, MAX_LOGPROBS)),
    "truncation": Note("`auto` drops the oldest turns of a conversation that is too long.", _enum("auto", "disabled")),
    "chat_template_kwargs": Note("The template's own variables."),
    **{name: Note("Shown again.", {"maxLength": limit}) for name, limit in MAX_LABEL_CHARS.items()},
    **{name: Note(f"Refused: {reason}.") for name, reason in REFUSED.items()},
}

NOTES: dict[str, dict[str, Note]] = {
    "ChatBody": _CHAT,
    "CompletionBody": _COMPLETION,
    "StreamOptions": {
        "include_usage": Note("Sends a last chunk with the token counts."),
        "continuous_usage_stats": Note("Sends the counts so far with every chunk; only with `include_usage`."),
    },
    "StructuredOutputs": {
        "json": Note("A JSON schema, or the text of one."),
        "regex": Note("The answer matches it as a whole.", {"minLength": 1, "maxLength": MAX_REGEX_CHARS}),
        "choice": Note("The answer is one of these texts.", _CHOICES),
        "grammar": Note("An EBNF or Lark grammar.", {"minLength": 1, "maxLength": MAX_GRAMMAR_CHARS}),
        "json_object": Note("The answer is any JSON object."),
        "structural_tag": Note("Structures behind triggers in free text, or the JSON text of that."),
    },
    "ResponsesBody": _RESPONSES,
    "ResponseStreamOptions": {
        "include_usage": Note("Changes nothing: the last event always has the token counts."),
        "continuous_usage_stats": Note("Refused."),
        "include_obfuscation": Note("Refused unless it is false."),
    },
    "Reasoning": {
        "effort": Note("How much to think, for templates that know it.", _enum(*REASONING_EFFORTS)),
        "summary": Note("Shown again: summaries are not made.", _enum(*SUMMARIES)),
        "generate_summary": Note("The older name of `summary`.", _enum(*SUMMARIES)),
        "context": Note("Only `auto` is served.", _enum("auto")),
        "mode": Note("Only `standard` is served.", _enum("standard")),
    },
    "TextConfig": {
        "format": Note("The form that the text has to have."),
        "verbosity": Note("Shown again.", _enum(*VERBOSITIES)),
    },
    "ChatMessage": {
        "role": Note("Who speaks; `developer` is the same as `system`.", {"enum": list(ROLES)}),
        "content": Note("The text, or its parts."),
        "name": Note("The speaker's name, for templates that show one."),
        "tool_calls": Note("Calls that the assistant made in this turn."),
        "function_call": Note("The older form of `tool_calls`."),
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
        "type": Note("Only functions are called.", {"enum": ["function"]}),
    },
    "CalledFunction": {
        "name": Note("The function's name."),
        "arguments": Note("Its arguments, as JSON text or as an object."),
    },
    "TokenizeBody": {
        "model": Note("A served name; the first one without it."),
        "prompt": Note("A text; either this or `messages`."),
        "messages": Note("A conversation; further fields are those of a chat."),
        "add_special_tokens": Note(
            "Whether the tokenizer adds its special tokens; true without it. For `prompt` only."
        ),
        "return_token_strs": Note("Sends the tokens as the vocabulary spells them, too."),
    },
    "DetokenizeBody": {
        "tokens": Note("Token ids.", {"items": _TOKEN_ID}),
        "model": Note("A served name; the first one without it."),
    },
    "DrainBody": {
        "timeout_s": Note("What still runs after so many seconds is moved to another worker."),
    },
    "ChaosBody": {
        "spec": Note("What is to fail and when, as `--chaos` takes it."),
    },
}

_REFUSED = Note("Not served: refused by name unless it is null, false or empty.")


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
