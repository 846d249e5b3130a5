"""Resolves the fields that decide how an answer's tokens become text: stop strings and special tokens."""

from api.schema import SamplingBody
from runtime.errors import RequestError
from runtime.text_stream import TextOptions

MAX_STOP_STRINGS = 16
MAX_STOP_CHARS = 512


def resolve_text(body: SamplingBody) -> TextOptions:
    """Checks them all; `min_tokens` has been checked with the sampling fields."""
    skip_special_tokens = body.skip_special_tokens is not False
    if body.spaces_between_special_tokens and not skip_special_tokens:
        raise RequestError(
            "spaces_between_special_tokens: true is not supported where special tokens are shown "
            "(skip_special_tokens is false); allowed: false",
            param="spaces_between_special_tokens",
            code="unsupported_parameter",
        )
    return TextOptions(
        stop=_stop_strings(body.stop),
        min_tokens=body.min_tokens or 0,
        include_stop=bool(body.include_stop_str_in_output),
        skip_special_tokens=skip_special_tokens,
    )


def _stop_strings(stop: str | list[str] | None) -> tuple[str, ...]:
    texts = [stop] if isinstance(stop, str) else stop or []
    if len(texts) > MAX_STOP_STRINGS:
        raise RequestError(f"stop: at most {MAX_STOP_STRINGS} strings, got {len(texts)}", param="stop")
    for text in texts:
        if not 1 <= len(text) <= MAX_STOP_CHARS:
            raise RequestError(
                f"stop: a stop string must have 1 to {MAX_STOP_CHARS} characters, got {len(text)}", param="stop"
            )
    return tuple(dict.fromkeys(texts))
