"""Grammar texts for llguidance from what clients bring: schemas, regular expressions, choices, EBNF, Lark, tags.

Each builder is pure and checks only limits and shape; whether llguidance takes the text is asked afterwards. A refusal
is a `RequestError` that names the field, `param`.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from llguidance import LLMatcher
from llguidance.gbnf_to_lark import any_to_lark

from api.structural_tag import structural_lark
from runtime.errors import RequestError

Schema = Mapping[str, Any] | bool
"""A JSON schema, decoded."""

MAX_SCHEMA_BYTES = 64 * 1024
MAX_SCHEMA_DEPTH = 64
"""Levels of nested objects and lists in a schema's own JSON."""
MAX_REGEX_CHARS = 4096
MAX_CHOICES = 1000
MAX_GRAMMAR_CHARS = 64 * 1024
"""Of an EBNF or Lark text, and of all choices together."""

ANY_OBJECT: Schema = {"type": "object"}

_JSON_OPTIONS: dict[str, Any] = {
    # One space at most, behind commas and colons: weak models do not come back from white space.
    "whitespace_flexible": False,
    "item_separator": ", ?",
    "key_separator": ": ?",
    "lenient": False,
    "coerce_one_of": False,
}

_ONE_LINE_OPTIONS: dict[str, Any] = {
    "whitespace_flexible": False,
    "item_separator": ", ",
    "key_separator": ": ",
    "lenient": False,
    "coerce_one_of": False,
}
"""As chat templates show calls."""


def grammar_of_schema(schema: Schema, param: str = "schema") -> str:
    """The grammar of the JSON texts that a schema allows, without white space before and behind."""
    return str(LLMatcher.grammar_from_json_schema(_schema_text(_object_of(schema), param), overrides=_JSON_OPTIONS))


def json_in_lark(schema: Schema, param: str = "schema", *, one_line: bool = False) -> str:
    """A schema as a term of a Lark rule, as in `call: "<tool_call>" ` followed by this. See `grammar_of_lark`.

    With `one_line` its JSON is spelled in one way, with a blank behind every comma and colon.
    """
    text = _schema_text(_object_of(schema), param)
    options = json.dumps(_ONE_LINE_OPTIONS if one_line else _JSON_OPTIONS)
    return f'%json {text[:-1]}{"" if text == "{}" else ", "}"x-guidance": {options}}}'


def grammar_of_lark(text: str) -> str:
    """The grammar of a Lark text in llguidance's dialect, whose first rule is `start`.

    `json_in_lark(schema)` can stand wherever a term can, at the end of its line; `json.dumps(text, ensure_ascii=False)`
    writes a literal; `<[151657]>` is the special token of that id, which no literal can spell.
    """
    return str(LLMatcher.grammar_from_lark(text))


def grammar_of_regex(regex: str, param: str = "regex") -> str:
    """The grammar of the texts that match a regular expression as a whole."""
    _check_length(param, regex, MAX_REGEX_CHARS)
    return str(LLMatcher.grammar_from_regex(regex))


def grammar_of_choice(choices: Sequence[str], param: str = "choice") -> str:
    """The grammar of exactly these texts."""
    if not 1 <= len(choices) <= MAX_CHOICES:
        raise RequestError(f"{param}: must have 1 to {MAX_CHOICES} choices, got {len(choices)}", param=param)
    _check_length(param, "".join(choices), MAX_GRAMMAR_CHARS)
    if not all(choices):
        raise RequestError(f"{param}: a choice must not be empty", param=param)
    return grammar_of_lark("start: " + " | ".join(json.dumps(choice, ensure_ascii=False) for choice in choices))


def grammar_of_text(text: str, param: str = "grammar") -> str:
    """The grammar of a Lark text, or of an EBNF one (rules written with `::=`, the first named `root`)."""
    _check_length(param, text, MAX_GRAMMAR_CHARS)
    try:
        return grammar_of_lark(any_to_lark(text))
    except RecursionError as error:
        raise RequestError(f"{param}: nested too deeply", param=param, code="invalid_grammar") from error
    except Exception as error:  # the converter raises bare Exception for a rule that is missing or there twice
        reason = " ".join(str(error).split())[:300]
        raise RequestError(f"{param}: {reason}", param=param, code="invalid_grammar") from error


def grammar_of_tags(tag: Mapping[str, Any] | str, special: Mapping[str, int], param: str = "structural_tag") -> str:
    """The grammar of free text with structures behind triggers; `special` are the special tokens by name."""
    if isinstance(tag, str):
        tag = decoded_object(tag, param)
    return grammar_of_lark(structural_lark(tag, special, json_in_lark, param))


def decoded_object(text: str, param: str) -> dict[str, Any]:
    """A field that came as JSON text, as an object."""
    try:
        return msgspec.json.decode(text, type=dict[str, Any])
    except (msgspec.DecodeError, RecursionError) as error:
        raise RequestError(f"{param}: not a JSON object: {str(error)[:200]}", param=param) from error


def _check_length(param: str, text: str, limit: int) -> None:
    if not 1 <= len(text) <= limit:
        raise RequestError(f"{param}: must have 1 to {limit} characters, got {len(text)}", param=param)


def _object_of(schema: Schema) -> Schema:
    """A boolean schema as an object, which alone can have options."""
    return {} if schema is True else {"not": {}} if schema is False else schema


def _schema_text(schema: Schema, param: str) -> str:
    if isinstance(schema, Mapping) and "x-guidance" in schema:
        raise RequestError(f'{param}: "x-guidance" is reserved', param=param, code="unsupported_schema")
    if _depth(schema) > MAX_SCHEMA_DEPTH:
        raise RequestError(f"{param}: at most {MAX_SCHEMA_DEPTH} levels of nesting", param=param)
    text = json.dumps(schema, ensure_ascii=False)
    num_bytes = len(text.encode())
    if num_bytes > MAX_SCHEMA_BYTES:
        raise RequestError(f"{param}: at most {MAX_SCHEMA_BYTES} bytes of JSON, got {num_bytes}", param=param)
    return text


def _depth(value: Any) -> int:
    """Levels of nesting, looked at without recursion and no further than the limit."""
    depth, level = 0, [value]
    while level and depth <= MAX_SCHEMA_DEPTH:
        children = [item.values() if isinstance(item, Mapping) else item for item in level if _holds(item)]
        level = [child for items in children for child in items]
        depth += bool(children)
    return depth


def _holds(item: Any) -> bool:
    return isinstance(item, Mapping | list | tuple)
