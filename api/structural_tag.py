"""Structural tags: free text in which a trigger must be followed by one of the structures that begin with it."""

import json
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from runtime.errors import RequestError

MAX_STRUCTURES = 128
MAX_TAG_CHARS = 512
"""Of a trigger, a begin or an end."""


class Structure(msgspec.Struct, frozen=True):
    """One structure: the text that begins it, the schema of its JSON, and the text that ends it."""

    begin: str
    schema: dict[str, Any] | bool
    end: str = ""


class StructuralTag(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The field's value. `format`, the newer form, is not supported."""

    structures: list[Structure]
    triggers: list[str]
    type: str = "structural_tag"


def structural_lark(
    value: Mapping[str, Any],
    special: Mapping[str, int],
    json_term: Callable[[dict[str, Any] | bool, str], str],
    param: str,
) -> str:
    """The Lark text of structural tags. A trigger that is a special token, found in `special`, is matched by its id."""
    tag = _read(value, param)
    rules = ["%llguidance {}", "", "TEXT: /(.|\\n)*/"]
    names = []
    for number, structure in enumerate(tag.structures):
        where = f"{param}.structures[{number}]"
        trigger = _trigger(structure, tag.triggers, where)
        rest = structure.begin.removeprefix(trigger)
        names.append(f"tag_{number}")
        if trigger in special:
            head = f"TEXT <[{special[trigger]}]>"
        else:
            head = f"head_{number}"
            rules.append(f"{head}[lazy]: TEXT {_literal(trigger)}")
        rules.append(f"tag_{number}: {head} {_literal(rest)} json_{number} {_literal(structure.end)}")
        rules.append(f"json_{number}: {json_term(structure.schema, f'{where}.schema')}")
    return "\n".join([*rules, f"start: ({' | '.join(names)})* rest", "rest: TEXT", ""])


def _read(value: Mapping[str, Any], param: str) -> StructuralTag:
    if "format" in value:
        raise RequestError(
            f'{param}.format: not supported; allowed: "structures" and "triggers"',
            param=f"{param}.format",
            code="unsupported_parameter",
        )
    try:
        tag = msgspec.convert(value, StructuralTag)
    except msgspec.ValidationError as error:
        raise RequestError(f"{param}: {error}", param=param, code="invalid_type") from error
    if not 1 <= len(tag.structures) <= MAX_STRUCTURES:
        raise RequestError(
            f"{param}.structures: must have 1 to {MAX_STRUCTURES} entries, got {len(tag.structures)}",
            param=f"{param}.structures",
        )
    for text in [*tag.triggers, *(structure.begin for structure in tag.structures)]:
        if not 1 <= len(text) <= MAX_TAG_CHARS:
            raise RequestError(
                f"{param}: triggers and begins have 1 to {MAX_TAG_CHARS} characters, got {len(text)}", param=param
            )
    return tag


def _trigger(structure: Structure, triggers: list[str], where: str) -> str:
    """The longest trigger that the structure begins with."""
    found = [trigger for trigger in triggers if structure.begin.startswith(trigger)]
    if not found:
        raise RequestError(
            f"{where}.begin: {structure.begin[:60]!r} begins with none of the triggers", param=f"{where}.begin"
        )
    if len(structure.end) > MAX_TAG_CHARS:
        raise RequestError(f"{where}.end: at most {MAX_TAG_CHARS} characters", param=f"{where}.end")
    return max(found, key=len)


def _literal(text: str) -> str:
    return json.dumps(text, ensure_ascii=False) if text else ""
