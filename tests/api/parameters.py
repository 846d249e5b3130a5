"""What an OpenAPI document lists as parameters, and the values at and just beyond the limits that it states for them.

Only the document is read, as a client would. A parameter is an owner and a name: the owner of a body's field is the
schema that has it, that of a path's or a query's parameter the operation, that of the rest the place, `header` or
`security`.
"""

import math
from collections.abc import Iterator
from typing import Any

Parameter = tuple[str, str]
NUMBERS = {"integer", "number"}


def all_parameters(document: dict[str, Any]) -> dict[Parameter, dict[str, Any]]:
    """Every parameter of every operation with its schema, fields of bodies at every depth included."""
    components = document["components"]["schemas"]
    found: dict[Parameter, dict[str, Any]] = {}
    for path, item in document["paths"].items():
        for method, operation in item.items():
            for one in operation["parameters"]:
                owner = "header" if one["in"] == "header" else f"{method.upper()} {path}"
                found[owner, one["name"]] = one["schema"]
            for scheme in operation["security"]:
                found |= {("security", name): {} for name in scheme}
            for content in operation.get("requestBody", {}).get("content", {}).values():
                found |= _fields(content["schema"], f"{method.upper()} {path}", components, set())
    return found


def body_of(document: dict[str, Any], path: str) -> str:
    """The name of the schema that bodies sent to a path have."""
    schema = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
    return str(schema["$ref"]).rpartition("/")[2]


def _fields(
    schema: Any, owner: str, components: dict[str, Any], seen: set[str]
) -> dict[Parameter, dict[str, Any]]:  # fmt: skip
    if isinstance(schema, list):
        schema = dict(enumerate(schema))
    if not isinstance(schema, dict):
        return {}
    found: dict[Parameter, dict[str, Any]] = {}
    if (name := str(schema.get("$ref", "")).rpartition("/")[2]) and name not in seen:
        seen.add(name)
        found |= _fields(components[name], name, components, seen)
    for keyword, part in schema.items():
        if keyword == "properties":
            for field, one in part.items():
                found[owner, field] = one
                found |= _fields(one, owner if "$ref" in one else f"{owner}.{field}", components, seen)
        else:
            found |= _fields(part, owner, components, seen)
    return found


def probes(schema: dict[str, Any]) -> Iterator[tuple[Any, bool]]:
    """Values at the limits of a schema, which are allowed, and values just beyond, which are not.

    Where only the size of a text, a list or an object matters, what fills it is made up; lists of what cannot be made
    up are only left empty.
    """
    kinds = {one.get("type") for one in schema.get("anyOf", [schema])}
    yield from _numbers(schema, is_whole="number" not in kinds)
    yield from _sized(schema, "Length", lambda size: "x" * size)
    if "string" in kinds and None not in schema.get("enum", [None]):
        yield None, False
    for value in schema.get("enum", []):
        yield value, True
    if "enum" in schema:
        yield "surely-not", False
    items = schema.get("items", {})
    if "array" in kinds and "type" not in items and schema.get("minItems"):
        yield [], False
    if "array" in kinds and ("type" in items or "enum" in items):
        make = (lambda index: index + 3) if items.get("type") == "integer" else "x{}".format
        yield from _sized(schema, "Items", lambda size: [make(index) for index in range(size)])
        yield from (([value], allowed) for value, allowed in probes(items))
    if "object" in kinds:
        yield from _objects(schema)
    for part in schema.get("anyOf", []):
        yield from probes({"anyOf": [], **part} if part.get("type") == "null" else part)


def _numbers(schema: dict[str, Any], *, is_whole: bool) -> Iterator[tuple[Any, bool]]:
    for keyword, outwards in (("inimum", -math.inf), ("aximum", math.inf)):
        step = int(math.copysign(1, outwards))
        for limit, is_allowed in ((schema.get(f"m{keyword}"), True), (schema.get(f"exclusiveM{keyword}"), False)):
            if limit is not None:
                yield limit, is_allowed
                towards = outwards if is_allowed else -outwards
                beyond = limit + (step if is_allowed else -step) if is_whole else math.nextafter(limit, towards)
                yield beyond, not is_allowed


def _sized(schema: dict[str, Any], noun: str, make: Any) -> Iterator[tuple[Any, bool]]:
    least, most = schema.get(f"min{noun}"), schema.get(f"max{noun}")
    if least:
        yield make(least), True
        yield make(least - 1), False
    if most is not None:
        yield make(most), True
        yield make(most + 1), False


def _objects(schema: dict[str, Any]) -> Iterator[tuple[Any, bool]]:
    names, values = schema.get("propertyNames", {}), schema.get("additionalProperties", {})
    values = values if isinstance(values, dict) else {}
    value = "x" if values.get("type") == "string" else 1
    yield from _sized(schema, "Properties", lambda size: {str(index): value for index in range(size)})
    yield from (({name: value}, allowed) for name, allowed in _sized(names, "Length", lambda size: "7" * size))
    if "pattern" in names:
        yield {"surely not": value}, False
    yield from (({"7": one}, allowed) for one, allowed in probes(values))
