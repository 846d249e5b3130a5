"""The tables of `docs/api.md`, from the document that `/openapi.json` shows.

    python -m api.reference docs/api.md

puts them where the page has its markers. A field that stands for an object refers to the table of that object.
"""

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from starlette.responses import Response
from starlette.routing import Route

from api.openapi import openapi_document
from api.openapi_fields import NOTES
from api.openapi_routes import OPERATIONS

_MARKED = re.compile(r"(<!-- begin: ([\w.]+) -->\n).*?(<!-- end -->)", re.S)
_PREFIX = "#/components/schemas/"
_RANGES = (("minimum", "maximum", ""), ("minLength", "maxLength", " characters"), ("minItems", "maxItems", " of them"))


def filled(page: str) -> str:
    """The page with its tables as they are now. Raises KeyError for a marker with an unknown name."""
    tables = {"routes": _routes(), **{name: _fields(name) for name in NOTES}}
    return _MARKED.sub(lambda match: f"{match[1]}\n{tables[match[2]]}\n\n{match[3]}", page)


def _document() -> dict[str, Any]:
    routes = [Route(one.path, lambda request: Response(), methods=[one.method.upper()]) for one in OPERATIONS]
    return openapi_document(routes, needs_key=True)


def _routes() -> str:
    rows = [
        (f"`{one.method.upper()} {one.path}`", one.summary, _key(one.open, one.admin), _errors(one.errors))
        for one in OPERATIONS
    ]
    return _table(("route", "what it does", "key", "its own refusals"), rows)


def _key(is_open: bool, is_admin: bool) -> str:
    return "the operator's" if is_admin else "none" if is_open else "a client's"


def _errors(statuses: tuple[int, ...]) -> str:
    return ", ".join(map(str, sorted(statuses)))


def _fields(name: str) -> str:
    schema = _document()["components"]["schemas"][name]
    rows = [
        (f"`{field}`", _type(one), _limits(one, field in schema["required"]), one.get("description", ""))
        for field, one in schema["properties"].items()
    ]
    return _table(("field", "type", "allowed", "meaning"), rows)


def _type(schema: dict[str, Any]) -> str:
    if "$ref" in schema:
        name = schema["$ref"].removeprefix(_PREFIX)
        return f"[{name}](#{name.lower()})"
    if "anyOf" in schema:
        kinds = [_type(one) for one in schema["anyOf"] if one != {"type": "null"}]
        return " or ".join(kinds)
    if schema.get("type") == "array":
        return f"list of {_type(schema.get('items', {}))}"
    if "enum" in schema and "type" not in schema:
        return "string"
    return str(schema.get("type", "any"))


def _limits(schema: dict[str, Any], is_needed: bool) -> str:
    found = ["needed"] if is_needed else []
    if values := [value for value in schema.get("enum", ()) if value is not None]:
        found.append(", ".join(f"`{value}`" for value in values))
    for one in (schema, *schema.get("anyOf", ())):
        found += [text for low, high, unit in _RANGES if (text := _range(one, low, high, unit))]
    if "maxProperties" in schema:
        found.append(f"at most {schema['maxProperties']} entries")
    return "; ".join(dict.fromkeys(found))


def _range(schema: dict[str, Any], low: str, high: str, unit: str) -> str:
    least, most = schema.get(low), schema.get(high)
    above = schema.get("exclusiveMinimum") if low == "minimum" else None
    if above is not None:
        return f"above {_number(above)}" + ("" if most is None else f", at most {_number(most)}")
    if least is not None and most is not None:
        return f"{_number(least)} to {_number(most)}{unit}"
    if least is not None:
        return f"at least {_number(least)}{unit}"
    return "" if most is None else f"at most {_number(most)}{unit}"


def _number(value: float) -> str:
    powers = {2**63 - 1: "2^63 - 1", -(2**63): "-2^63", 2**31 - 1: "2^31 - 1"}
    return powers.get(int(value), f"{value:g}")


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


if __name__ == "__main__":
    path = Path(sys.argv[1])
    path.write_text(filled(path.read_text(encoding="utf-8")), encoding="utf-8")
