"""The body of `POST /v1/responses`: which fields are known and of which types.

The sampling fields are those of the other endpoints, under the same names. Fields of OpenAI's that concern nothing
here (`user`, `prompt_cache_key` and the like) are taken and shown again; those that would change the answer and are
not built are listed in `REFUSED`.
"""

from typing import Any

import msgspec

from api.schema import SamplingBody, StreamOptions


class ResponseStreamOptions(StreamOptions):
    """`stream_options`: usage always comes with the last event, so `include_usage` changes nothing."""

    include_obfuscation: bool | None = None


class Reasoning(msgspec.Struct, kw_only=True):
    """`reasoning`: how much to think goes to the chat template; summaries are not made."""

    effort: str | None = None
    summary: str | None = None
    generate_summary: str | None = None
    context: str | None = None
    mode: str | None = None


class TextConfig(msgspec.Struct, kw_only=True):
    """`text`: the output's format."""

    format: dict[str, Any] | None = None
    verbosity: str | None = None


class ResponsesBody(SamplingBody, kw_only=True):
    """Body of `/v1/responses`."""

    input: str | list[Any] | None = None
    instructions: str | None = None
    previous_response_id: str | None = None
    max_output_tokens: int | None = None
    max_tool_calls: int | None = None
    background: bool | None = None
    store: bool | None = None
    include: list[str] | None = None
    metadata: dict[str, str] | None = None
    parallel_tool_calls: bool | None = None
    reasoning: Reasoning | None = None
    service_tier: str | None = None
    stream_options: ResponseStreamOptions | None = None
    text: TextConfig | None = None
    tool_choice: str | dict[str, Any] | None = None
    tools: list[dict[str, Any]] | None = None
    top_logprobs: int | None = None
    truncation: str | None = None
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    conversation: Any = None
    prompt: Any = None
    moderation: Any = None
    context_management: Any = None
    background_options: Any = None
    echo: Any = None
    response_format: Any = None
    max_completion_tokens: Any = None
    messages: Any = None
    logprobs: Any = None
    reasoning_effort: Any = None
    functions: Any = None
    continue_final_message: Any = None
    add_generation_prompt: Any = None


REFUSED = {
    "conversation": "conversations are not kept; allowed: previous_response_id",
    "prompt": "prompt templates are not kept; allowed: input",
    "moderation": "there is no moderation",
    "context_management": "nothing is compacted; allowed: truncation",
    "background_options": "there is one kind of background; allowed: background",
    "echo": "not an option of this endpoint; allowed: /v1/completions",
    "prompt_logprobs": "not an option of this endpoint; allowed: /v1/completions",
    "return_token_ids": "not an option of this endpoint; allowed: /v1/chat/completions",
    "response_format": "not an option of this endpoint; allowed: text.format",
    "messages": "not an option of this endpoint; allowed: input",
    "max_tokens": "not an option of this endpoint; allowed: max_output_tokens",
    "logprobs": "not an option of this endpoint; allowed: include",
    "reasoning_effort": "not an option of this endpoint; allowed: reasoning.effort",
    "functions": "not an option of this endpoint; allowed: tools",
    "continue_final_message": "not an option of this endpoint; allowed: /v1/chat/completions",
    "add_generation_prompt": "not an option of this endpoint; allowed: /v1/chat/completions",
    "max_completion_tokens": "not an option of this endpoint; allowed: max_output_tokens",
}
"""Fields that are refused, and what to do instead."""
