"""What a chat's answer is going to be made of: its grammar, its parser, the tokens that the parser has to see.

Joins what the client asked for (`ToolPlan`) with what the model's text has (`OutputForms`). The grammar goes into the
making of a job; the rest is put into one that is ready otherwise.
"""

import uuid
from collections.abc import Callable
from functools import partial

import msgspec

from api.model import ServedModel
from api.parsers.first_call import FirstCallParser
from api.parsers.forms import PLAIN_FORM, ReasoningForm, ToolForm
from api.parsers.parts import ContentParser, OutputParser
from api.parsers.reasoning import ReasoningParser
from api.schema import SamplingBody
from api.structured import constrained_form
from api.tools import ToolPlan
from api.tools_grammar import needs_grammar, tools_grammar
from api.validate import CallShape, Job
from runtime.errors import RequestError
from runtime.text_stream import TextOptions


def demanded_grammar(plan: ToolPlan, body: SamplingBody, model: ServedModel) -> str | None:
    """The grammar that the tools demand, None where they leave the answer to itself. Raises RequestError.

    A forced call goes before every other form of answer. Where calls are free, an answer that has to be JSON is either
    calls or that JSON; other forms leave no room for calls.
    """
    form = tool_form(plan, model)
    if form is None:
        return None
    after = model.forms.reasoning is not None
    other = constrained_form(body)
    if plan.mode == "required" or other is None:
        return tools_grammar(plan, form, model, after_reasoning=after) if needs_grammar(plan) else None
    param, schema = other
    if schema is None:
        raise RequestError(
            f'{param}: leaves no room for the calls of tools: allowed with tools: tool_choice "none", or a '
            "response_format of type json_object or json_schema",
            param=param,
        )
    return tools_grammar(plan, form, model, after_reasoning=after, answer=schema)


def with_output(job: Job, plan: ToolPlan, prompt_text: str, model: ServedModel) -> Job:
    """The job with everything that finding reasoning and calls needs. Raises RequestError."""
    form, reasoning = tool_form(plan, model), model.forms.reasoning
    shown = _shown_ids(form, reasoning, model)
    requests = tuple(
        msgspec.structs.replace(request, text=_with_shown(request.text, shown)) for request in job.requests
    )
    make_parser = partial(_make_parser, form, frozenset(tool.name for tool in plan.callable), plan.many)
    if reasoning is not None:
        make_parser = partial(_make_reasoning_parser, make_parser, reasoning.begins_inside(prompt_text))
    return msgspec.structs.replace(job, requests=requests, make_parser=make_parser, call_shape=_call_shape(plan))


def _with_shown(text: TextOptions, shown: tuple[int, ...]) -> TextOptions:
    return msgspec.structs.replace(text, shown_ids=tuple(dict.fromkeys((*text.shown_ids, *shown))))


def _call_shape(plan: ToolPlan) -> CallShape:
    if plan.mode == "none":
        return "none"
    return "function_call" if plan.is_legacy else "tool_calls"


def tool_form(plan: ToolPlan, model: ServedModel) -> ToolForm | None:
    """The form in which this answer's calls are written, None when it has none. Raises RequestError."""
    if plan.mode == "none":
        return None
    if model.forms.tools is not None:
        return model.forms.tools
    if plan.mode == "required":
        return PLAIN_FORM
    param = "functions" if plan.is_legacy else "tools"
    raise RequestError(
        f"{param}: how this model writes calls is not known, so it can only be made to call: "
        'allowed: tool_choice "none", "required" or a function; or a server with --tool-call-parser',
        param=param,
        code="unsupported_parameter",
    )


def _shown_ids(form: ToolForm | None, reasoning: ReasoningForm | None, model: ServedModel) -> tuple[int, ...]:
    """Markers that are special tokens: they give text, so that the parser sees them."""
    markers = (*(form.markers if form else ()), *((reasoning.begin, reasoning.end) if reasoning else ()))
    tokens = [model.tokenizer.added_token(marker) for marker in markers]
    return tuple(token for token in tokens if token is not None and token in model.tokenizer.special_ids)


def _make_parser(form: ToolForm | None, names: frozenset[str], many: bool) -> OutputParser:
    if form is None:
        return ContentParser()
    parser = form.make_parser(_id_source(form), names)
    return parser if many else FirstCallParser(parser)


def _make_reasoning_parser(make_inner: Callable[[], OutputParser], inside: bool) -> OutputParser:
    return ReasoningParser(make_inner(), begins_inside=inside)


def _id_source(form: ToolForm) -> Callable[[], str]:
    """Ids of calls, in the length that the form's template asks for."""
    if form.id_chars is None:
        return lambda: f"call_{uuid.uuid4().hex[:24]}"
    size = form.id_chars
    return lambda: uuid.uuid4().hex[:size]
