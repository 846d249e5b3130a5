"""What a request asks of its answer's form, as a `ConstraintSpec`: grammars, bad words and the thinking budget.

Runs in the API's worker threads. Every grammar is compiled once here, so that one that cannot be compiled is a 400
that names the field and the place; the compiled grammar is kept for the workers that sample.

At most one field may ask for a grammar: `response_format`, one key of `structured_outputs`, or one of the older
`guided_*` names. For grammars of an endpoint's own, `grammar_of_schema` makes one of a schema and `grammar_of_lark` of
a Lark text in which `json_in_lark` may stand.
"""

import re
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from api.bad_words import bad_word_tokens
from api.checks import whole_in_range
from api.grammar_text import (
    ANY_OBJECT,
    Schema,
    decoded_object,
    grammar_of_choice,
    grammar_of_lark,
    grammar_of_regex,
    grammar_of_schema,
    grammar_of_tags,
    grammar_of_text,
    json_in_lark,
)
from api.model import ServedModel
from api.schema import CompletionBody, SamplingBody
from api.schema_fault import find_fault
from runtime.errors import RequestError
from runtime.sampling_params import ConstraintSpec

__all__ = ["constraint_behind", "grammar_of_lark", "grammar_of_schema", "json_in_lark", "resolve_constraint"]

MAX_THINKING_TOKENS = 2**31 - 1
RESPONSE_FORMATS = ("text", "json_object", "json_schema", "structural_tag")
_OUTPUT_KEYS = ("json", "regex", "choice", "grammar", "json_object", "structural_tag")
_GUIDED = {"guided_json": "json", "guided_regex": "regex", "guided_choice": "choice", "guided_grammar": "grammar"}

_SCHEMA_REASON = re.compile(r"failed to compile JSON schema: (.*?)(?=\n +\d+ \||\Z)", re.DOTALL)

_Form = tuple[str, str, Any]
"""The field's name, which of `_OUTPUT_KEYS` it is, and its value."""


def resolve_constraint(body: SamplingBody, model: ServedModel, *, demanded: str | None = None) -> ConstraintSpec | None:
    """What constrains every choice of a request, or None. `constraint_behind` fits it to a prompt.

    `demanded` is the grammar of a form of answer that the endpoint demands itself, as for a forced tool call.
    """
    forms = list(_forms(body))
    if len(forms) > 1:
        raise RequestError(
            f"{forms[1][0]}: only one field may say what the answer looks like, and {forms[0][0]} does",
            param=forms[1][0],
        )
    grammar = _grammar(*forms[0], model) if forms else None
    budget = body.thinking_token_budget
    if budget is not None:
        whole_in_range("thinking_token_budget", budget, 0, MAX_THINKING_TOKENS, 0)
        if not model.think_end:
            raise RequestError(
                "thinking_token_budget: this model has no thinking block",
                param="thinking_token_budget",
                code="unsupported_parameter",
            )
    spec = ConstraintSpec(
        grammar=demanded or grammar,
        bad_words=bad_word_tokens(body.bad_words or [], model),
        thinking_budget=budget,
        think_start=model.think_start,
        think_end=model.think_end,
    )
    return spec if spec.grammar or spec.bad_words or budget is not None else None


def constrained_form(body: SamplingBody) -> tuple[str, Schema | None] | None:
    """The field that says what the answer looks like, with the schema of the answer if it is JSON; None without one."""
    for param, key, value in _forms(body):
        if key == "json":
            return param, decoded_object(value, param) if isinstance(value, str) else value
        return param, ANY_OBJECT if key == "json_object" else None
    return None


def constraint_behind(
    prompt: Sequence[int], spec: ConstraintSpec | None, body: SamplingBody, model: ServedModel
) -> ConstraintSpec | None:
    """The constraint of the choices that follow a prompt.

    The answer goes on in a thinking block that the last turn of the prompt left open. Where that turn has closed one,
    or the prompt is a plain text, no block comes before the grammar.
    """
    if spec is None or not spec.think_end:
        return spec
    if isinstance(body, CompletionBody):
        always_inside = False
    else:
        always_inside = model.forms.reasoning is not None and model.forms.reasoning.always_inside
    opened, closed = (_last_in_turn(prompt, marker, model) for marker in (spec.think_start, spec.think_end))
    if opened > closed or always_inside:
        return msgspec.structs.replace(spec, begins_thinking=True)
    if spec.grammar is not None and (closed >= 0 or isinstance(body, CompletionBody)):
        return msgspec.structs.replace(spec, think_start=(), think_end=(), thinking_budget=None)
    return spec


def _last_in_turn(prompt: Sequence[int], marker: tuple[int, ...], model: ServedModel) -> int:
    """Where a marker ends last in the prompt's last turn, behind every other special token; -1 for nowhere."""
    length = len(marker)
    for end in range(len(prompt), length - 1, -1):
        if tuple(prompt[end - length : end]) == marker:
            return end
        if prompt[end - 1] in model.tokenizer.special_ids and not {prompt[end - 1]} & {
            *model.think_start,
            *model.think_end,
        }:
            return -1
    return -1


def _forms(body: SamplingBody) -> Iterator[_Form]:
    """Every field that asks for a grammar."""
    yield from _response_format(body.response_format)
    outputs = body.structured_outputs
    if outputs is not None:
        for key in _OUTPUT_KEYS:
            value = getattr(outputs, key)
            if value is not None and (value is not False or key == "json"):
                yield f"structured_outputs.{key}", key, value
    for field, key in _GUIDED.items():
        value = getattr(body, field)
        if value is not None:
            yield field, key, value


def _response_format(value: dict[str, Any] | None) -> Iterator[_Form]:
    if value is None:
        return
    kind = value.get("type", "text")
    if kind not in RESPONSE_FORMATS:
        raise RequestError(
            f"response_format.type: must be one of {', '.join(RESPONSE_FORMATS)}, got {str(kind)[:40]!r}",
            param="response_format.type",
        )
    if kind == "json_object":
        yield "response_format", "json_object", True
    elif kind == "json_schema":
        yield "response_format.json_schema.schema", "json", _named_schema(value.get("json_schema"))
    elif kind == "structural_tag":
        yield "response_format", "structural_tag", value


def _named_schema(value: Any) -> Any:
    """The schema of OpenAI's `json_schema` object. Strict or not, it is kept to."""
    param = "response_format.json_schema"
    if not isinstance(value, dict):
        raise RequestError(f'{param}: must be an object with "name" and "schema"', param=param)
    if not isinstance(value.get("strict"), bool | None):
        raise RequestError(f"{param}.strict: must be true or false", param=f"{param}.strict")
    schema = value.get("schema")
    if schema is None:
        if value.get("strict"):
            raise RequestError(f"{param}.schema: needed where strict is true", param=f"{param}.schema")
        return ANY_OBJECT
    if not isinstance(schema, dict):
        raise RequestError(f"{param}.schema: must be an object", param=f"{param}.schema")
    return schema


def _grammar(param: str, key: str, value: Any, model: ServedModel) -> str:
    """The compiled form's text. Raises RequestError where it cannot be compiled."""
    if key == "json":
        return _schema_grammar(param, value, model)
    if key == "json_object":
        return _checked(param, grammar_of_schema(ANY_OBJECT, param), model)
    if key == "regex":
        return _checked(param, grammar_of_regex(value, param), model)
    if key == "choice":
        return _checked(param, grammar_of_choice(value, param), model)
    if key == "grammar":
        return _checked(param, grammar_of_text(value, param), model)
    assert key == "structural_tag"
    return _checked(param, grammar_of_tags(value, _special_tokens(model), param), model)


def _checked(param: str, grammar: str, model: ServedModel) -> str:
    reason = model.check_grammar(grammar)
    if reason is not None:
        raise RequestError(f"{param}: cannot be compiled: {reason}", param=param, code="invalid_grammar")
    return grammar


def _schema_grammar(param: str, value: Schema | str, model: ServedModel) -> str:
    """A schema may come as JSON text; a fault in it is searched for, so that the message says where."""
    schema = decoded_object(value, param) if isinstance(value, str) else value
    grammar = grammar_of_schema(schema, param)
    reason = _schema_reason(model.check_grammar(grammar))
    if reason is None:
        return grammar
    path = find_fault(schema, reason, lambda part: _schema_reason(model.check_grammar(grammar_of_schema(part, param))))
    place = f"{param}.{path}" if path else param
    raise RequestError(f"{place}: cannot be compiled: {reason}", param=param, code="invalid_grammar")


def _schema_reason(reason: str | None) -> str | None:
    """What is wrong with a schema, without the line of the grammar that holds it."""
    if reason is None:
        return None
    found = _SCHEMA_REASON.search(reason)
    return found[1].strip() if found else reason


def _special_tokens(model: ServedModel) -> dict[str, int]:
    return {model.tokenizer.piece(token).decode(errors="replace"): token for token in model.tokenizer.special_ids}
