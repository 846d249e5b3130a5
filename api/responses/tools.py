"""Tools and tool choices: the flat shape of this endpoint, turned into chat's nested one.

Only functions are served. Tools that OpenAI's servers run themselves are refused by their names.
"""

from collections.abc import Sequence
from typing import Any

from api.responses.items import shown
from runtime.errors import RequestError

_FUNCTION_KEYS: dict[str, tuple[type, str]] = {
    "name": (str, "a string"),
    "description": (str, "a string"),
    "parameters": (dict, "an object"),
    "strict": (bool, "true or false"),
}

Tools = list[dict[str, Any]] | None
Choice = str | dict[str, Any] | None


def chat_tools(tools: Tools, choice: Choice) -> Tools:
    """The tools as chat takes them; of those that `allowed_tools` leaves out, the model does not learn."""
    for index, tool in enumerate(tools or []):
        if tool.get("type") != "function":
            raise RequestError(
                f'tools[{index}].type: only "function" is supported, got {shown(tool.get("type"))}',
                param=f"tools[{index}].type",
                code="unsupported_parameter",
            )
        _check_function(f"tools[{index}]", tool)
    allowed = _allowed_names(tools, choice)
    kept = [tool for tool in tools or [] if allowed is None or tool.get("name") in allowed]
    return [_nested(tool) for tool in kept] or None


def chat_tool_choice(choice: Choice) -> Choice:
    """The choice as chat takes it."""
    if not isinstance(choice, dict):
        return choice
    match choice.get("type"):
        case "function":
            return {"type": "function", "function": {"name": choice.get("name")}}
        case "allowed_tools":
            mode = choice.get("mode")
            if mode not in ("auto", "required"):
                raise RequestError(
                    f"tool_choice.mode: must be one of auto, required, got {shown(mode)}", param="tool_choice.mode"
                )
            return str(mode)
        case other:
            raise RequestError(
                f"tool_choice.type: must be one of function, allowed_tools, got {shown(other)}",
                param="tool_choice.type",
            )


def _check_function(param: str, tool: dict[str, Any]) -> None:
    for key, (kind, words) in _FUNCTION_KEYS.items():
        value = tool.get(key)
        if not (isinstance(value, kind) or (value is None and key != "name")):
            raise RequestError(f"{param}.{key}: must be {words}, got {shown(value)}", param=f"{param}.{key}")


def _allowed_names(tools: Tools, choice: Choice) -> Sequence[str] | None:
    """The names that `allowed_tools` lists; None where the choice is another."""
    if not isinstance(choice, dict) or choice.get("type") != "allowed_tools":
        return None
    listed = choice.get("tools")
    known = [tool.get("name") for tool in tools or []]
    if not isinstance(listed, list) or not listed:
        raise RequestError("tool_choice.tools: must be a list of at least one tool", param="tool_choice.tools")
    names: list[str] = []
    for index, entry in enumerate(listed):
        name = entry.get("name") if isinstance(entry, dict) and entry.get("type") == "function" else None
        if not isinstance(name, str) or name not in known:
            param = f"tool_choice.tools[{index}]"
            raise RequestError(f"{param}: must be a function among tools, got {shown(entry)}", param=param)
        names.append(name)
    return names


def _nested(tool: dict[str, Any]) -> dict[str, Any]:
    function = {key: tool[key] for key in _FUNCTION_KEYS if tool.get(key) is not None}
    return {"type": "function", "function": function}


def shown_tools(tools: Tools) -> list[dict[str, Any]]:
    """The tools as a response shows them."""
    return [{"type": "function", **{key: tool.get(key) for key in _FUNCTION_KEYS}} for tool in tools or []]


def shown_choice(choice: Choice) -> str | dict[str, Any]:
    """The choice as a response shows it."""
    return "auto" if choice is None else choice
