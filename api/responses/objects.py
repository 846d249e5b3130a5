"""The response object: what the request asked for, how far it has come, and what came of it."""

from typing import Any, Literal

import msgspec

from actors.messages import ErrorInfo
from api.responses.items import OutputItem
from api.run import Usage

ResponseStatus = Literal["queued", "in_progress", "completed", "incomplete", "failed", "cancelled"]
FAR = ("completed", "incomplete", "failed", "cancelled")
"""States after which nothing changes."""

_INVALID = 400
_TOO_MANY = 429


class ResponseError(msgspec.Struct, frozen=True, kw_only=True):
    """Why a response failed."""

    code: Literal["server_error", "rate_limit_exceeded", "invalid_prompt"]
    message: str


class IncompleteDetails(msgspec.Struct, frozen=True, kw_only=True):
    """Why a response ended early."""

    reason: Literal["max_output_tokens"] = "max_output_tokens"


class InputTokensDetails(msgspec.Struct, frozen=True, kw_only=True):
    """Of the input, the tokens that a prefix cache held. Writing into it is never counted."""

    cached_tokens: int
    cache_write_tokens: int = 0


class OutputTokensDetails(msgspec.Struct, frozen=True, kw_only=True):
    """Of the output, the tokens of reasoning items."""

    reasoning_tokens: int


class ResponseUsage(msgspec.Struct, frozen=True, kw_only=True):
    """What a response used, in tokens."""

    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    output_tokens_details: OutputTokensDetails
    total_tokens: int


class ReasoningShown(msgspec.Struct, frozen=True, kw_only=True):
    """`reasoning` as it was asked for."""

    effort: str | None = None
    summary: str | None = None


class ResponseObject(msgspec.Struct, frozen=True, kw_only=True):
    """A response as clients read it, at any time of its life. `created_at` and `completed_at` are in Unix seconds.

    What is not set is left out: OpenAI's description does not allow null there.
    """

    id: str
    object: Literal["response"] = "response"
    created_at: int
    status: ResponseStatus
    background: bool
    completed_at: int | None = None
    error: ResponseError | None = None
    incomplete_details: IncompleteDetails | None = None
    instructions: str | None
    max_output_tokens: int | None
    max_tool_calls: int | None
    metadata: dict[str, str]
    model: str
    output: tuple[OutputItem, ...] = ()
    parallel_tool_calls: bool
    previous_response_id: str | None
    prompt_cache_key: str | None
    reasoning: ReasoningShown
    safety_identifier: str | None
    service_tier: Literal["default"] = "default"
    store: bool
    temperature: float
    text: dict[str, Any]
    tool_choice: str | dict[str, Any]
    tools: list[dict[str, Any]]
    top_logprobs: int
    top_p: float
    truncation: Literal["auto", "disabled"]
    usage: ResponseUsage | msgspec.UnsetType = msgspec.UNSET
    user: str | msgspec.UnsetType = msgspec.UNSET
    runtime_timing: dict[str, Any] | msgspec.UnsetType = msgspec.UNSET

    @property
    def is_over(self) -> bool:
        """Whether nothing will change any more."""
        return self.status in FAR


def usage_of(usage: Usage, reasoning_tokens: int) -> ResponseUsage:
    """A job's usage in this endpoint's words."""
    return ResponseUsage(
        input_tokens=usage.prompt_tokens,
        input_tokens_details=InputTokensDetails(cached_tokens=usage.cached_tokens),
        output_tokens=usage.completion_tokens,
        output_tokens_details=OutputTokensDetails(reasoning_tokens=reasoning_tokens),
        total_tokens=usage.prompt_tokens + usage.completion_tokens,
    )


def failure_of(error: ErrorInfo) -> ResponseError:
    """A failure in the few codes that a response knows."""
    if error.status == _TOO_MANY:
        return ResponseError(code="rate_limit_exceeded", message=error.message)
    return ResponseError(code="invalid_prompt" if error.status == _INVALID else "server_error", message=error.message)
