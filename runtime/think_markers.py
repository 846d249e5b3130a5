"""The tokens around a model's block of thoughts, for models whose chat template knows of one."""

from runtime.tokens import Tokenizer

THINK_START, THINK_END = "<think>", "</think>"

Markers = tuple[tuple[int, ...], tuple[int, ...]]


def think_markers(tokenizer: Tokenizer) -> Markers:
    """The tokens of `<think>` and `</think>`; both empty where the chat template mentions neither.

    They are also empty where one of them is not a single token: text around it could then merge into its tokens.
    """
    template = tokenizer.chat_template
    if THINK_START not in template and THINK_END not in template:
        return (), ()
    start, end = (tuple(tokenizer.encode(marker)) for marker in (THINK_START, THINK_END))
    return (start, end) if len(start) == len(end) == 1 else ((), ())
