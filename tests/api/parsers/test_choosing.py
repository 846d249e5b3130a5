"""Which forms a model is found to have: by its template and tokens, not by its name."""

import pytest
from tokenizers import AddedToken
from transformers import PreTrainedTokenizerFast

from api.parsers.forms import REASONING_FORMS, TOOL_FORMS, choose_forms
from runtime.settings import REASONING_PARSERS, TOOL_CALL_PARSERS
from runtime.tokens import Tokenizer
from tests.runtime.tiny_tokenizer import TURN_END, byte_level_backend

HERMES = '{% if tools %}<tool_call>\\n{"name": <name>, "arguments": <args>}\\n</tool_call>{% endif %}'
QWEN_CODER = HERMES + "<function=example>"
LLAMA3 = '{% if tools %}Respond with {"name": function name, "parameters": {}}{{ "ipython" }}{% endif %}'
MISTRAL = '{% if tools %}{{ "[TOOL_CALLS] [" + "{" }}"arguments"{% endif %}'
DEEPSEEK = "{% if tools %}<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>{% endif %}"


def tokenizer(template: str | None, *added: str) -> Tokenizer:
    backend = byte_level_backend()
    backend.add_tokens([AddedToken(text, special=False) for text in added])
    wrapped = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=TURN_END)
    wrapped.chat_template = template
    return Tokenizer(wrapped)


@pytest.mark.parametrize(
    ("template", "form"),
    [
        (HERMES, "hermes"), (QWEN_CODER, None), (LLAMA3, "llama3"), (MISTRAL, "mistral"), (DEEPSEEK, "deepseek"),
        ("no mention <tool_call>", None), ("{{ tools }} in words", None), (None, None),
    ],
)  # fmt: skip
def test_the_template_tells_how_calls_are_written(template: str | None, form: str | None) -> None:
    found = choose_forms("auto", "auto", tokenizer(template)).tools
    assert (found.name if found else None) == form


def test_a_flag_goes_before_the_template() -> None:
    model = tokenizer(HERMES + "</think>")
    forms = choose_forms("mistral", "think-open", model)
    assert forms.tools is not None
    assert forms.tools.name == "mistral"
    assert forms.reasoning is not None
    assert forms.reasoning.begins_inside("any prompt")
    none = choose_forms("none", "none", model)
    assert (none.tools, none.reasoning) == (None, None)


def test_reasoning_is_told_by_tokens_or_by_the_template() -> None:
    assert choose_forms("auto", "auto", tokenizer("x", "</think>")).reasoning == REASONING_FORMS["think"]
    assert choose_forms("auto", "auto", tokenizer("x</think>")).reasoning == REASONING_FORMS["think"]
    assert choose_forms("auto", "auto", tokenizer("x")).reasoning is None


def test_a_prompt_may_open_the_block() -> None:
    form = REASONING_FORMS["think"]
    assert form.begins_inside("<|Assistant|><think>\n")
    assert not form.begins_inside("<|Assistant|><think>\n\n</think>\n\n")
    assert not form.begins_inside("What is <think>? <|Assistant|>")


def test_all_forms_can_be_asked_for() -> None:
    assert set(TOOL_CALL_PARSERS) == {"auto", "none", *TOOL_FORMS}
    assert set(REASONING_PARSERS) == {"auto", "none", *REASONING_FORMS}
