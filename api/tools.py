"""The tools that a chat offers and what the client wants done with them, checked.

The legacy fields `functions` and `function_call` say the same in older words: they become tools, of which one is
called at most. Whether a call is forced decides what constrains the answer (`tools_grammar`); how calls are found in
the text is the parsers' matter.
"""

import json
import re
from typing import Any, Literal

import msgspec

from runtime.errors import RequestError

MAX_TOOLS = 128
MAX_TOOLS_BYTES = 512 * 1024
_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")

Mode = Literal["none", "auto", "required"]


class Tool(msgspec.Struct, frozen=True):
    """A function that the model may call: `schema` is that of its arguments, `param` the field that brought it."""

    name: str
    schema: dict[str, Any]
    strict: bool
    param: str


class ToolPlan(msgspec.Struct, frozen=True, kw_only=True):
    """Offered tools and how they may be called.

    `offered` is what the template gets. Among `callable` is what the answer may call: all tools, or the one that was
    named. With mode "required" the answer is calls and nothing else; `many` allows more than one. With `is_legacy` the
    client reads the call where it was before there were tools.
    """

    offered: tuple[dict[str, Any], ...] = ()
    callable: tuple[Tool, ...] = ()
    mode: Mode = "none"
    many: bool = False
    is_legacy: bool = False


def plan_tools(
    tools: list[dict[str, Any]] | None,
    tool_choice: str | dict[str, Any] | None,
    functions: list[dict[str, Any]] | None,
    function_call: str | dict[str, Any] | None,
    parallel_tool_calls: bool | None,
) -> ToolPlan:
    """What the client asked for, of either generation of fields. Raises RequestError."""
    legacy = bool(functions)
    _check_generations(tools, tool_choice, functions, function_call)
    if legacy:
        offered = [{"type": "function", "function": function} for function in functions or []]
        param, choice_param, choice = "functions", "function_call", _from_legacy(function_call)
    else:
        offered, param, choice_param, choice = tools or [], "tools", "tool_choice", tool_choice
    known = _check_tools(offered, param)
    mode, name = _choice(choice, choice_param)
    if not known:
        if mode == "required":
            raise RequestError(f"{choice_param}: only allowed when {param} are given", param=choice_param)
        return ToolPlan()
    mode = mode or "auto"
    callable_tools = known if name is None else tuple(tool for tool in known if tool.name == name)
    if not callable_tools:
        raise RequestError(f"{choice_param}: {str(name)[:64]!r} is not among the {param}", param=choice_param)
    return ToolPlan(
        offered=() if mode == "none" else tuple(offered),
        callable=callable_tools if mode != "none" else (),
        mode=mode,
        many=parallel_tool_calls is not False and not legacy and name is None,
        is_legacy=legacy,
    )


def _check_generations(tools: object, tool_choice: object, functions: object, function_call: object) -> None:
    """Refuses fields of one generation beside those of the other, which would go unheard."""
    if functions and tools:
        raise RequestError("functions: not allowed together with tools", param="functions")
    if functions and tool_choice is not None:
        raise RequestError(
            "tool_choice: not allowed together with functions; allowed: function_call", param="tool_choice"
        )
    if tools and function_call is not None:
        raise RequestError(
            "function_call: not allowed together with tools; allowed: tool_choice", param="function_call"
        )
    if not functions and function_call not in (None, "none", "auto"):
        raise RequestError("function_call: only allowed when functions are given", param="function_call")


def _from_legacy(choice: str | dict[str, Any] | None) -> str | dict[str, Any] | None:
    if choice is None or choice in ("none", "auto"):
        return choice
    if isinstance(choice, dict) and isinstance(choice.get("name"), str):
        return {"type": "function", "function": {"name": choice["name"]}}
    raise RequestError(
        f'function_call: must be "none", "auto" or {{"name": ...}}, got {str(choice)[:80]!r}', param="function_call"
    )


def _choice(choice: str | dict[str, Any] | None, param: str) -> tuple[Mode | None, str | None]:
    """The mode, and the function that was named."""
    match choice:
        case None:
            return None, None
        case "none" | "auto" | "required":
            return choice, None
        case {"type": "function", "function": {"name": str(name)}}:
            return "required", name
    raise RequestError(
        f'{param}: must be "none", "auto", "required" or {{"type": "function", "function": {{"name": ...}}}}, '
        f"got {str(choice)[:80]!r}",
        param=param,
    )


def _check_tools(offered: list[dict[str, Any]], param: str) -> tuple[Tool, ...]:
    if len(offered) > MAX_TOOLS:
        raise RequestError(f"{param}: at most {MAX_TOOLS}, got {len(offered)}", param=param)
    size = _json_bytes(offered, param)
    if size > MAX_TOOLS_BYTES:
        raise RequestError(f"{param}: at most {MAX_TOOLS_BYTES} bytes of JSON, got {size}", param=param)
    tools = tuple(_check_tool(tool, f"{param}[{index}]") for index, tool in enumerate(offered))
    seen: set[str] = set()
    for tool in tools:
        if tool.name in seen:
            raise RequestError(f"{tool.param}: another tool has the name {tool.name!r}", param=tool.param)
        seen.add(tool.name)
    return tools


def _json_bytes(offered: list[dict[str, Any]], param: str) -> int:
    try:
        return len(json.dumps(offered, ensure_ascii=False, separators=(",", ":")).encode())
    except RecursionError as error:
        raise RequestError(f"{param}: nested too deeply", param=param) from error


def _check_tool(tool: dict[str, Any], param: str) -> Tool:
    function = tool.get("function")
    if tool.get("type", "function") != "function":
        raise RequestError(
            f'{param}.type: only "function" is supported, got {str(tool["type"])[:40]!r}', param=f"{param}.type"
        )
    if not isinstance(function, dict) or not isinstance(name := function.get("name"), str):
        raise RequestError(f'{param}: must be {{"type": "function", "function": {{"name": ...}}}}', param=param)
    if not _NAME.fullmatch(name):
        raise RequestError(
            f"{param}.function.name: must have 1 to 64 of a-z, A-Z, 0-9, _ and -, got {name[:80]!r}",
            param=f"{param}.function.name",
        )
    for field, kinds in (("description", str), ("strict", bool)):
        if not isinstance(function.get(field), kinds | None):
            raise RequestError(
                f"{param}.function.{field}: must be {'text' if kinds is str else 'true or false'}",
                param=f"{param}.function.{field}",
            )
    return Tool(name, _schema(function.get("parameters"), param), bool(function.get("strict")), param)


def _schema(parameters: object, param: str) -> dict[str, Any]:
    """The arguments' schema; a function without parameters takes an empty object."""
    if parameters is None or parameters == {}:
        return {"type": "object", "properties": {}, "additionalProperties": False}
    if not isinstance(parameters, dict):
        raise RequestError(
            f"{param}.function.parameters: must be a JSON schema, which is an object",
            param=f"{param}.function.parameters",
        )
    kind = parameters.get("type")
    if kind not in (None, "object"):
        raise RequestError(
            f'{param}.function.parameters.type: must be "object", got {str(kind)[:40]!r}',
            param=f"{param}.function.parameters.type",
        )
    return parameters if kind is not None or "$ref" in parameters else {"type": "object", **parameters}
