"""Which forms of calls and of reasoning a model's text has: told by flag, or read off the model's chat template.

Chosen once at start. The template shows how calls are to be written, so what a folder's template says decides; there
is no list of models.
"""

from collections.abc import Callable, Collection, Mapping
from types import MappingProxyType

import msgspec

from api.parsers import deepseek, hermes, llama3, mistral, reasoning
from api.parsers.calls import MakeId
from api.parsers.parts import OutputParser
from runtime.tokens import Tokenizer

AUTO, NONE = "auto", "none"
MakeCallParser = Callable[[MakeId, Collection[str]], OutputParser]


class ToolForm(msgspec.Struct, frozen=True):
    """A form of calls: its parser, made of a source of ids and the offered functions, and its markers.

    `is_told_by` tells whether a chat template that mentions tools asks the model for this form. Ids of calls have
    `id_chars` characters when the form limits them.
    """

    name: str
    markers: tuple[str, ...]
    make_parser: MakeCallParser
    is_told_by: Callable[[str], bool]
    id_chars: int | None = None


class ReasoningForm(msgspec.Struct, frozen=True):
    """A form of reasoning. With `always_inside` the text begins inside the block whatever the prompt ends with."""

    name: str
    always_inside: bool
    begin: str = reasoning.BEGIN
    end: str = reasoning.END

    def begins_inside(self, prompt: str) -> bool:
        """Whether the text behind this prompt begins inside the block."""
        return self.always_inside or prompt.rstrip().endswith(self.begin)


class OutputForms(msgspec.Struct, frozen=True, kw_only=True):
    """The forms of one model's text; None for what it does not have."""

    tools: ToolForm | None = None
    reasoning: ReasoningForm | None = None


def _asks_for_hermes(template: str) -> bool:
    """Other models put the same tags around calls that are no JSON."""
    return hermes.BEGIN in template and '"arguments"' in template and "<function=" not in template


def _asks_for_llama3(template: str) -> bool:
    return '"parameters"' in template and ("ipython" in template or llama3.BEGIN in template)


_TOOL_FORMS = (
    ToolForm(
        "mistral", (mistral.BEGIN, mistral.ARGS, mistral.CALL_ID),
        lambda make_id, names: mistral.MistralParser(make_id), lambda template: mistral.BEGIN in template, id_chars=9,
    ),
    ToolForm(
        "deepseek",
        (deepseek.CALLS_BEGIN, deepseek.CALLS_END, deepseek.BEGIN, deepseek.SEPARATOR, deepseek.END),
        lambda make_id, names: deepseek.DeepSeekParser(make_id), lambda template: deepseek.CALLS_BEGIN in template,
    ),
    ToolForm(
        "hermes", (hermes.BEGIN, hermes.END), lambda make_id, names: hermes.HermesParser(make_id), _asks_for_hermes
    ),
    ToolForm("llama3", (llama3.BEGIN,), llama3.Llama3Parser, _asks_for_llama3),
)  # fmt: skip

TOOL_FORMS: Mapping[str, ToolForm] = MappingProxyType({form.name: form for form in _TOOL_FORMS})
REASONING_FORMS: Mapping[str, ReasoningForm] = MappingProxyType(
    {form.name: form for form in (ReasoningForm("think", False), ReasoningForm("think-open", True))}
)
PLAIN_FORM = TOOL_FORMS["llama3"]
"""Forced calls of a model without a form of its own are bare JSON objects."""


def choose_forms(tool_parser: str, reasoning_parser: str, tokenizer: Tokenizer) -> OutputForms:
    """The forms by the flags' names, of which "auto" looks at the chat template and the added tokens."""
    return OutputForms(tools=_tool_form(tool_parser, tokenizer), reasoning=_reasoning_form(reasoning_parser, tokenizer))


def _tool_form(name: str, tokenizer: Tokenizer) -> ToolForm | None:
    if name != AUTO:
        return TOOL_FORMS.get(name)
    if "tools" not in tokenizer.chat_template:
        return None
    return next((form for form in _TOOL_FORMS if form.is_told_by(tokenizer.chat_template)), None)


def _reasoning_form(name: str, tokenizer: Tokenizer) -> ReasoningForm | None:
    if name != AUTO:
        return REASONING_FORMS.get(name)
    has_tokens = all(tokenizer.added_token(tag) is not None for tag in (reasoning.BEGIN, reasoning.END))
    return REASONING_FORMS["think"] if has_tokens or reasoning.END in tokenizer.chat_template else None
