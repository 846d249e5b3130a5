"""Makes `openai_schema.json` from OpenAI's published description of its API: the structure of the answers of five
routes and of their stream events, nothing else.

    python -m tests.api.extract_openai_schema openapi.json

The description is `openapi.json` of https://github.com/openai/openai-openapi. Left out are texts and examples, and the
alternatives of unions that stand for tools which only OpenAI hosts. What its own service breaks is amended: see
`AMENDMENTS`.
"""

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

TARGET = Path(__file__).with_name("openai_schema.json")
ROOTS = (
    "CreateChatCompletionResponse", "CreateChatCompletionStreamResponse", "CreateCompletionResponse",
    "ListModelsResponse", "Model", "Response", "ResponseStreamEvent", "ErrorResponse",
)  # fmt: skip
PREFIX = "#/components/schemas/"
NOT_STRUCTURE = {
    "description",
    "example",
    "examples",
    "title",
    "deprecated",
    "externalDocs",
    "default",
    "discriminator",
}
HOSTED = re.compile(
    "Audio|CodeInterpreter|FileSearch|WebSearch|ImageGen|MCP|Computer|Shell|ApplyPatch|Custom|Compaction|Program"
    "|ToolSearch|Namespace|AdditionalTools|Agent|ItemReference|InputImage|InputFile|Moderation|Hosted|Prompt$"
)
"""Names of alternatives that are left out of unions."""

_COMPLETION_CHOICE = ("CreateCompletionResponse", "properties", "choices", "items", "properties")
_COMPLETION_LOGPROBS = (*_COMPLETION_CHOICE, "logprobs", "anyOf", 0, "properties")
_NULL = {"type": "null"}
AMENDMENTS: dict[tuple[str | int, ...], str] = {
    (*_COMPLETION_CHOICE, "finish_reason"): "null in every chunk of a stream but the last",
    ("CreateCompletionResponse", "properties", "usage"): "null in every chunk of a stream that ends in the usage",
    (*_COMPLETION_LOGPROBS, "token_logprobs", "items"): "null for the first token of an echoed prompt",
    (*_COMPLETION_LOGPROBS, "top_logprobs", "items"): "null for the first token of an echoed prompt",
    ("ModelResponseProperties", "properties", "user"): "null where none was given, as in the description's examples",
    ("Response", "allOf", 2, "properties", "usage"): "null until the end, as in the description's examples",
}
"""Where null is allowed although the description does not say so, and when it is sent."""


def extract(document: dict[str, Any]) -> dict[str, Any]:
    """The schemas that the roots need."""
    schemas, found, waiting = document["components"]["schemas"], dict[str, Any](), list(ROOTS)
    while waiting:
        name = waiting.pop()
        if name not in found:
            found[name] = _structure(schemas[name])
            waiting += references(found[name])
    for path in AMENDMENTS:
        _allow_null(found, path)
    return dict(sorted(found.items()))


def references(part: Any) -> Iterator[str]:
    """The names of the schemas that a part refers to."""
    if isinstance(part, dict):
        if isinstance(part.get("$ref"), str):
            yield part["$ref"].removeprefix(PREFIX)
        for one in part.values():
            yield from references(one)
    elif isinstance(part, list):
        for one in part:
            yield from references(one)


def _structure(schema: Any) -> Any:
    if isinstance(schema, list):
        return [_structure(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    kept = {
        key: {name: _structure(one) for name, one in value.items()} if key == "properties" else _structure(value)
        for key, value in schema.items()
        if key not in NOT_STRUCTURE and not key.startswith("x-") and key != "nullable"
    }
    for union in ("anyOf", "oneOf"):
        if union in kept:
            kept[union] = [one for one in kept[union] if not HOSTED.search(one.get("$ref", ""))] or kept[union]
    return {"anyOf": [kept, _NULL]} if schema.get("nullable") is True else kept


def _allow_null(schemas: dict[str, Any], path: tuple[str | int, ...]) -> None:
    part: Any = schemas
    for step in path[:-1]:
        part = part[step]
    part[path[-1]] = {"anyOf": [part[path[-1]], _NULL]}


def main(source: str) -> None:
    """Writes the file next to this one."""
    document = json.loads(Path(source).read_text(encoding="utf-8"))
    content = {
        "source": "https://github.com/openai/openai-openapi, openapi.json (MIT licence)",
        "version": document["info"]["version"],
        "amended": {"/".join(map(str, path)): reason for path, reason in AMENDMENTS.items()},
        "components": {"schemas": extract(document)},
    }
    lines = json.dumps(content, separators=(",", ":")).replace('},"', '},\n"')
    TARGET.write_text(lines + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1])
