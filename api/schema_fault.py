"""Where in a JSON schema the thing is that cannot be compiled.

llguidance says what is wrong but not where. The innermost subschema that fails alone with the same words is the place.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

_MAX_TRIES = 300
_ONE = ("items", "additionalProperties", "additionalItems", "not", "if", "then", "else", "contains", "propertyNames")
_MANY = ("properties", "patternProperties", "$defs", "definitions", "anyOf", "oneOf", "allOf", "prefixItems", "items")


def find_fault(schema: Any, reason: str, check: Callable[[Any], str | None]) -> str:
    """A path as `properties.a.items` to the subschema that `check` refuses with `reason`; "" for the schema itself."""
    shared = {key: schema[key] for key in ("$defs", "definitions") if isinstance(schema, Mapping) and key in schema}
    path, tries, current = "", 0, schema
    while True:
        for name, child in _children(current):
            tries += 1
            if tries > _MAX_TRIES:
                return path
            alone = {**shared, **child} if name.split(".")[0] not in shared else child
            if check(alone) == reason:
                path, current = f"{path}.{name}" if path else name, child
                break
        else:
            return path


def _children(schema: Any) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Subschemas that are objects, each with its path from here."""
    if not isinstance(schema, Mapping):
        return
    for key in _MANY:
        value = schema.get(key)
        entries = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else ()
        if key == "items" and isinstance(value, Mapping):
            continue
        for name, child in entries:
            if isinstance(child, Mapping):
                yield f"{key}.{name}", child
    for key in _ONE:
        if isinstance(child := schema.get(key), Mapping):
            yield key, child
