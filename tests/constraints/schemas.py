"""Random JSON schemas from a seed, of the kinds that clients send: every one can be fulfilled.

Sizes are bounded where a schema language lets one bound them, so that a random walk through the grammar has a chance to
end: half of the strings, lists and maps have upper bounds, and additional properties are rare.
"""

from random import Random
from typing import Any

PATTERNS = ("^[a-z]{1,6}$", "^[A-Z]{2}[0-9]{3}$", "^(red|green|blue)$", "[0-9]+", "^\\d{2}-\\w{1,4}$", "^#[0-9a-f]{6}$")
FORMATS = ("date", "date-time", "uuid", "ipv4", "email")
WORDS = ("id", "name", "value", "size", "kind", "tags", "left", "right", "über", "a b", 'qu"ote', "x/y", "0", "emoji😀")
SCALARS: tuple[Any, ...] = ("red", "", "two words", 'with "quotes"', "日本", 0, -7, 3.5, 1e3, True, False, None)


def random_schema(seed: int) -> dict[str, Any]:
    """The schema of a seed. Its root is an object; about a fifth share or nest definitions through `$ref`."""
    random = Random(seed)
    schema = _object(random, 0, refs=())
    if random.random() < 0.2:
        schema["$defs"] = {"shared": _value(random, 2, refs=())}
        schema["properties"]["ref"] = {"$ref": "#/$defs/shared"}
        if random.random() < 0.5:
            tree = {"type": "object", "properties": {"value": {"type": "integer"}}, "required": ["value"]}
            tree["properties"]["next"] = {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/tree"}]}
            schema["$defs"]["tree"] = tree | {"additionalProperties": False}
            schema["properties"]["tree"] = {"$ref": "#/$defs/tree"}
    return schema


def bounded(schema: Any) -> Any:
    """The schema with an end to everything: no string, list or number goes on for ever, and no object is open."""
    if isinstance(schema, list):
        return [bounded(item) for item in schema]
    if not isinstance(schema, dict) or "const" in schema or "enum" in schema:
        return schema
    found = {key: bounded(value) if key != "required" else value for key, value in schema.items()}
    kinds = schema.get("type", ())
    kinds = kinds if isinstance(kinds, list) else [kinds]
    if "string" in kinds and "format" not in schema:
        found.setdefault("maxLength", 16)
    if "array" in kinds and "prefixItems" not in schema:
        found.setdefault("maxItems", 4)
    if "object" in kinds:
        found["additionalProperties"] = False
    if {"integer", "number"} & {*kinds} and not {"maximum", "exclusiveMaximum"} & {*schema}:
        low = schema.get("minimum", schema.get("exclusiveMinimum", -1000))
        found |= {"maximum": low + 5000} | ({} if {"minimum", "exclusiveMinimum"} & {*schema} else {"minimum": low})
    elif {"integer", "number"} & {*kinds} and not {"minimum", "exclusiveMinimum"} & {*schema}:
        found["minimum"] = schema.get("maximum", schema.get("exclusiveMaximum")) - 5000
    return found


def _value(random: Random, depth: int, refs: tuple[str, ...]) -> dict[str, Any]:
    makers = [_string, _string, _integer, _number, _enum, _const, _plain]
    if depth < 3:
        makers += [_object, _object, _array, _array, _any_of, _nullable, _one_of, _all_of]
    maker = random.choice(makers)
    schema = maker(random, depth + 1, refs)
    if random.random() < 0.1:
        schema = schema | {"description": "what it is", "title": "Title"}
    return schema


def _object(random: Random, depth: int, refs: tuple[str, ...]) -> dict[str, Any]:
    names = random.sample(WORDS, random.randint(1, 4))
    schema: dict[str, Any] = {"type": "object", "properties": {name: _value(random, depth, refs) for name in names}}
    schema["required"] = [name for name in names if random.random() < 0.7]
    if random.random() < 0.85:
        schema["additionalProperties"] = False
    elif random.random() < 0.5:
        schema["additionalProperties"] = {"type": "integer"}
    return schema


def _array(random: Random, depth: int, refs: tuple[str, ...]) -> dict[str, Any]:
    if random.random() < 0.2:
        items = [_value(random, depth + 1, refs) for _ in range(random.randint(1, 3))]
        return {"type": "array", "prefixItems": items, "items": False, "minItems": random.randint(0, len(items))}
    schema: dict[str, Any] = {"type": "array", "items": _value(random, depth, refs)}
    if random.random() < 0.5:
        schema["minItems"] = random.randint(0, 2)
        schema["maxItems"] = schema["minItems"] + random.randint(0, 3)
    return schema


def _string(random: Random, depth: int, refs: tuple[str, ...]) -> dict[str, Any]:
    kind = random.random()
    if kind < 0.25:
        return {"type": "string", "pattern": random.choice(PATTERNS)}
    if kind < 0.4:
        return {"type": "string", "format": random.choice(FORMATS)}
    if kind < 0.8:
        low = random.randint(0, 3)
        return {"type": "string", "minLength": low, "maxLength": low + random.randint(0, 12)}
    return {"type": "string"}


def _integer(random: Random, depth: int, refs: tuple[str, ...]) -> dict[str, Any]:
    low = random.randint(-1000, 1000)
    schema: dict[str, Any] = {"type": "integer"}
    if random.random() < 0.7:
        schema[random.choice(["minimum", "exclusiveMinimum"])] = low
    if random.random() < 0.7:
        schema[random.choice(["maximum", "exclusiveMaximum"])] = low + random.randint(2, 2000)
    if random.random() < 0.15:
        return {"type": "integer", "multipleOf": random.choice([2, 5, 10])}
    return schema


def _number(random: Random, depth: int, refs: tuple[str, ...]) -> dict[str, Any]:
    low = round(random.uniform(-50, 50), 2)
    return random.choice([{"type": "number"}, {"type": "number", "minimum": low, "maximum": low + 10.5}])


def _enum(random: Random, depth: int, refs: tuple[str, ...]) -> dict[str, Any]:
    return {"enum": random.sample(SCALARS, random.randint(1, 5))}


def _const(random: Random, depth: int, refs: tuple[str, ...]) -> dict[str, Any]:
    return {"const": random.choice([*SCALARS, {"a": [1, "x"]}, [None, {}], []])}


def _plain(random: Random, depth: int, refs: tuple[str, ...]) -> dict[str, Any]:
    return {"type": random.choice(["boolean", "null", "integer"])}


def _nullable(random: Random, depth: int, refs: tuple[str, ...]) -> dict[str, Any]:
    return {"type": [random.choice(["string", "integer", "boolean"]), "null"]}


def _any_of(random: Random, depth: int, refs: tuple[str, ...]) -> dict[str, Any]:
    return {"anyOf": [_value(random, depth, refs) for _ in range(random.randint(2, 3))]}


def _one_of(random: Random, depth: int, refs: tuple[str, ...]) -> dict[str, Any]:
    options = []
    for kind in ("a", "b"):
        option = _object(random, depth, refs)
        option["properties"] = {"kind_": {"const": kind}} | option["properties"]
        option["required"] = ["kind_", *option["required"]]
        options.append(option)
    return {"oneOf": options}


def _all_of(random: Random, depth: int, refs: tuple[str, ...]) -> dict[str, Any]:
    number = {"type": "number", "minimum": random.randint(0, 5)}
    return {"allOf": [number, {"maximum": random.randint(6, 20)}]}
