"""Grammars, in llguidance's Lark, of answers that call tools, written in the model's own form of calls.

A forced answer is calls and nothing else. A free one is text in which, from the marker of a call on, only a call of an
offered function can follow; it serves `strict` tools and clients that want one call at most. Where a marker is a token
of its own, the grammar names the token, for it has no other spelling.
"""

import json
from collections.abc import Callable, Sequence

import msgspec

from api.grammar_text import Schema, grammar_of_lark, grammar_of_schema, json_in_lark
from api.model import ServedModel
from api.parsers import deepseek, hermes, mistral
from api.parsers.forms import ToolForm
from api.schema_fault import find_fault
from api.tools import Tool, ToolPlan
from runtime.errors import RequestError
from runtime.tokens import Tokenizer

MAX_CALLS = 16
"""Most calls of a forced answer: a model that is made to call does not always find an end by itself."""

_TEXT = r"/(.|\n)*/"
_GAP = r"/\n{0,2}/"
_NO_OBJECT = r"/[^{\s](.|\n)*/"


class Layout(msgspec.Struct, frozen=True, kw_only=True):
    """How a form writes calls: around all of them, around one call's arguments, and between two.

    `before` is made from the name. Pieces are texts or markers. What begins a call, or else all calls, is a marker;
    without one the form is bare.
    """

    opening: tuple[str, ...] = ()
    before: Callable[[str], tuple[str, ...]]
    after: tuple[str, ...] = ()
    separator: tuple[str, ...] = ()
    closing: tuple[str, ...] = ()
    is_bare: bool = False


def _object(key: str) -> Callable[[str], str]:
    return lambda name: f'{{"name": {json.dumps(name)}, "{key}": '


def _hermes(tokenizer: Tokenizer) -> Layout:
    return Layout(
        before=lambda name: (hermes.BEGIN, "\n" + _object("arguments")(name)),
        after=("}\n", hermes.END),
        separator=("\n",),
    )


def _llama3(tokenizer: Tokenizer) -> Layout:
    return Layout(before=lambda name: (_object("parameters")(name),), after=("}",), separator=("; ",), is_bare=True)


def _mistral(tokenizer: Tokenizer) -> Layout:
    """The form whose markers the vocabulary has."""
    if tokenizer.added_token(mistral.ARGS) is not None:
        return Layout(before=lambda name: (mistral.BEGIN, name, mistral.ARGS))
    return Layout(
        opening=(mistral.BEGIN, "["),
        before=lambda name: (_object("arguments")(name),),
        after=("}",),
        separator=(", ",),
        closing=("]",),
    )


def _deepseek(tokenizer: Tokenizer) -> Layout:
    """The form that the template shows."""
    if deepseek.FENCE_BEGIN in tokenizer.chat_template:
        return Layout(
            opening=(deepseek.CALLS_BEGIN,),
            before=lambda name: (
                deepseek.BEGIN, "function", deepseek.SEPARATOR, f"{name}\n{deepseek.FENCE_BEGIN}\n",
            ),
            after=(f"\n{deepseek.FENCE_END}", deepseek.END),
            separator=("\n",),
            closing=(deepseek.CALLS_END,),
        )  # fmt: skip
    return Layout(
        opening=(deepseek.CALLS_BEGIN,),
        before=lambda name: (deepseek.BEGIN, name, deepseek.SEPARATOR),
        after=(deepseek.END,),
        closing=(deepseek.CALLS_END,),
    )


_LAYOUTS: dict[str, Callable[[Tokenizer], Layout]] = {
    "hermes": _hermes, "llama3": _llama3, "mistral": _mistral, "deepseek": _deepseek
}  # fmt: skip


def needs_grammar(plan: ToolPlan) -> bool:
    """Whether the plan constrains the answer."""
    if plan.mode == "auto":
        return not plan.many or any(tool.strict for tool in plan.callable)
    return plan.mode == "required"


def tools_grammar(
    plan: ToolPlan, form: ToolForm, model: ServedModel, *, after_reasoning: bool = False, answer: Schema | None = None
) -> str:
    """The grammar of what the plan allows; with `after_reasoning` a line or two may be blank before calls.

    With `answer`, the schema of an answer without calls, a free answer is either calls or JSON of that schema. Raises
    RequestError that names the tool whose schema cannot be compiled.
    """
    layout = _LAYOUTS[form.name](model.tokenizer)
    writer = _Grammar(layout, model.tokenizer, form.markers, after_reasoning=after_reasoning)
    if plan.mode == "required":
        lark = writer.forced(plan.callable, plan.many)
    elif answer is not None:
        lark = writer.either(plan.callable, plan.many, answer)
    else:
        lark = writer.free(plan.callable, plan.many)
    grammar = grammar_of_lark(lark)
    reason = model.check_grammar(grammar)
    if reason is None:
        return grammar
    for tool in plan.callable:
        _check_schema(tool, model)
    raise RequestError(f"tools: cannot be compiled: {reason}", param="tools", code="invalid_grammar")


def _check_schema(tool: Tool, model: ServedModel) -> None:
    param = f"{tool.param}.function.parameters"

    def fault(schema: Schema) -> str | None:
        return model.check_grammar(grammar_of_schema(schema, param))

    reason = fault(tool.schema)
    if reason is not None:
        path = find_fault(tool.schema, reason, fault)
        place = f"{param}.{path}" if path else param
        raise RequestError(f"{place}: cannot be compiled: {reason}", param=param, code="invalid_grammar")


class _Grammar:
    """Writes the rules for one layout."""

    def __init__(self, layout: Layout, tokenizer: Tokenizer, markers: Sequence[str], *, after_reasoning: bool) -> None:
        self._layout = layout
        self._gap = [_GAP] if after_reasoning else []
        self._tokens = {marker: tokenizer.added_token(marker) for marker in markers}

    def forced(self, tools: Sequence[Tool], many: bool) -> str:
        """Calls alone."""
        start = [*self._gap, *self._terms(self._layout.opening), *self._calls(many), *self._terms(self._layout.closing)]
        return "\n".join([f"start: {' '.join(start)}", *self._call_rules(tools, skip=0)])

    def either(self, tools: Sequence[Tool], many: bool, answer: Schema) -> str:
        """Calls alone, or one JSON text."""
        opening, closing = self._terms(self._layout.opening), self._terms(self._layout.closing)
        calls = " ".join([*self._gap, *opening, *self._calls(many), *closing])
        rules = [f"start: {calls} | {' '.join([*self._gap, 'answer'])}", f"answer: {json_in_lark(answer)}"]
        return "\n".join([*rules, *self._call_rules(tools, skip=0)])

    def free(self, tools: Sequence[Tool], many: bool) -> str:
        """Text with calls in it."""
        if self._layout.is_bare:
            rules = [f"start: {' '.join(self._calls(many))} | TEXT |", f"TEXT: {_NO_OBJECT}"]
            return "\n".join([*rules, *self._call_rules(tools, skip=0)])
        opening, before = self._layout.opening, self._layout.before("")
        marker = (opening or before)[0]
        block = [*self._terms(opening[1:]), *(self._calls(many) if opening else ["call"])]
        block += self._terms(self._layout.closing)
        start = "lead block" if not many else "(lead block)* TEXT"
        rules = [f"start: {start}" + ("" if many else " | TEXT"), f"block: {' '.join(block)}", f"TEXT: {_TEXT}"]
        token = self._tokens.get(marker)
        rules.append(f"lead[lazy]: {_TEXT} {_quoted(marker)}" if token is None else f"lead: TEXT <[{token}]>")
        return "\n".join([*rules, *self._call_rules(tools, skip=0 if opening else 1)])

    def _calls(self, many: bool) -> list[str]:
        if not many:
            return ["call"]
        return ["call", f"({' '.join([*self._terms(self._layout.separator), 'call'])}){{0,{MAX_CALLS - 1}}}"]

    def _call_rules(self, tools: Sequence[Tool], skip: int) -> list[str]:
        """One rule for each tool's call, without the first `skip` pieces, and one for any of them."""
        rules = [f"call: {' | '.join(f'call_{index}' for index in range(len(tools)))}"]
        for index, tool in enumerate(tools):
            before = self._terms(self._layout.before(tool.name)[skip:])
            after = self._terms(self._layout.after)
            rules.append(f"call_{index}: {' '.join([*before, f'arguments_{index}', *after])}")
            schema = json_in_lark(tool.schema, f"{tool.param}.function.parameters", one_line=True)
            rules.append(f"arguments_{index}: {schema}")
        return rules

    def _terms(self, pieces: Sequence[str]) -> list[str]:
        tokens = [self._tokens.get(piece) for piece in pieces]
        return [
            _quoted(piece) if token is None else f"<[{token}]>" for piece, token in zip(pieces, tokens, strict=True)
        ]


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
