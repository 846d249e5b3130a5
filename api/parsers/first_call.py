"""Keeps a choice to one call, for clients that asked for no parallel ones."""

from api.parsers.parts import CallArguments, CallBegan, OutputParser, Part


class FirstCallParser:
    """The inner parser's parts without the calls behind the first."""

    def __init__(self, inner: OutputParser) -> None:
        self._inner = inner

    @property
    def is_reasoning(self) -> bool | None:
        """The inner parser's."""
        return self._inner.is_reasoning

    def push(self, text: str) -> list[Part]:
        """Takes the next piece."""
        return _without_later_calls(self._inner.push(text))

    def finish(self) -> list[Part]:
        """Takes the text's end."""
        return _without_later_calls(self._inner.finish())


def _without_later_calls(parts: list[Part]) -> list[Part]:
    return [part for part in parts if not (isinstance(part, CallBegan | CallArguments) and part.index > 0)]
