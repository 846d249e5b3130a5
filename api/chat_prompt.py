"""How a conversation is to be rendered: the chat fields that speak to the model's template."""

import inspect
from functools import cache
from typing import Any

from api.schema import ChatBody
from runtime.errors import RequestError
from runtime.tokens import TemplateOptions

REASONING_EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh", "max")


def template_options(body: ChatBody) -> TemplateOptions:
    """Checks the fields. Raises RequestError for combinations without a meaning and for variables that are not free."""
    if body.echo:
        raise RequestError("echo: not supported for chat", param="echo", code="unsupported_parameter")
    for modality in body.modalities or []:
        if modality != "text":
            raise RequestError(
                f'modalities: {modality[:40]!r} is not supported; allowed: "text"',
                param="modalities",
                code="unsupported_parameter",
            )
    continues = bool(body.continue_final_message)
    if continues and body.add_generation_prompt:
        raise RequestError(
            "add_generation_prompt: must not be true together with continue_final_message",
            param="add_generation_prompt",
        )
    if continues:
        _check_final_message(body)
    return TemplateOptions(
        add_generation_prompt=not continues and body.add_generation_prompt is not False,
        continue_final_message=continues,
        variables=_variables(body),
    )


def _check_final_message(body: ChatBody) -> None:
    final = body.messages[-1] if body.messages else None
    if final is None or final.role != "assistant" or not final.content or final.tool_calls:
        raise RequestError(
            "continue_final_message: the last message must be one of the assistant's, with content and without calls",
            param="continue_final_message",
        )


def _variables(body: ChatBody) -> dict[str, Any]:
    """The template's own variables; `reasoning_effort` is one of them, which the general field may set again."""
    variables: dict[str, Any] = {}
    if body.reasoning_effort is not None:
        if body.reasoning_effort not in REASONING_EFFORTS:
            raise RequestError(
                f"reasoning_effort: must be one of {', '.join(REASONING_EFFORTS)}, got {body.reasoning_effort[:40]!r}",
                param="reasoning_effort",
            )
        variables["reasoning_effort"] = body.reasoning_effort
    for name, value in (body.chat_template_kwargs or {}).items():
        if name in _reserved():
            raise RequestError(
                f"chat_template_kwargs: {name!r} is not the template's own to set", param="chat_template_kwargs"
            )
        variables[name] = value
    return variables


@cache
def _reserved() -> frozenset[str]:
    """Names that mean something to what renders, not to the template; `messages` is what the template reads."""
    from transformers import PreTrainedTokenizerBase
    from transformers.utils.chat_template_utils import render_jinja_template

    rendering = (PreTrainedTokenizerBase.apply_chat_template, render_jinja_template)
    return frozenset({"messages", *(name for call in rendering for name in inspect.signature(call).parameters)})
