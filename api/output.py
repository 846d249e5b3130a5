"""What a chat's answer is going to be made of: its parser, the tokens that the parser has to see, its grammar.

Joins what the client asked for (`ToolPlan`) with what the model's text has (`OutputForms`). The result is put into a
job that is ready otherwise.
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
from api.tools import ToolPlan
from api.tools_grammar import needs_grammar, tools_grammar
from api.validate import CallShape, Job
from runtime.errors import RequestError
from runtime.sampling_params import ConstraintSpec, SamplingParams


def with_output(job: Job, plan: ToolPlan, prompt_text: str, model: ServedModel) -> Job:
    """The job with everything that finding reasoning and calls, and forcing calls, needs. Raises RequestError."""
    form, reasoning = tool_form(plan, model), model.forms.reasoning
    inside = reasoning is not None and reasoning.begins_inside(prompt_text)
    grammar = None
    if form is not None and needs_grammar(plan):
        grammar = tools_grammar(plan, form, model.tokenizer, after_reasoning=reasoning is not None)
    shown = _shown_ids(form, reasoning, model)
    requests = tuple(
        msgspec.structs.replace(
            request,
            text=msgspec.structs.replace(
                request.text, shown_ids=tuple(dict.fromkeys((*request.text.shown_ids, *shown)))
            ),
            params=_with_grammar(request.params, grammar, reasoning, inside, model),
        )
        for request in job.requests
    )
    make_parser = partial(_make_parser, form, frozenset(tool.name for tool in plan.callable), plan.many)
    if reasoning is not None:
        make_parser = partial(_make_reasoning_parser, make_parser, inside)
    return msgspec.structs.replace(job, requests=requests, make_parser=make_parser, call_shape=_call_shape(plan))


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


def _with_grammar(
    params: SamplingParams, grammar: str | None, reasoning: ReasoningForm | None, inside: bool, model: ServedModel
) -> SamplingParams:
    if grammar is None:
        return params
    spec = params.constraint or ConstraintSpec()
    if spec.grammar is not None:
        raise RequestError(
            "tools: calls that are forced, strict or limited to one do not go together with another constraint on the "
            "answer (response_format, structured_outputs)",
            param="tools",
        )
    spec = msgspec.structs.replace(spec, grammar=grammar)
    if reasoning is not None:
        spec = msgspec.structs.replace(
            spec,
            think_start=tuple(model.tokenizer.encode(reasoning.begin)),
            think_end=tuple(model.tokenizer.encode(reasoning.end)),
            begins_thinking=inside,
        )
    return msgspec.structs.replace(params, constraint=spec)


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
