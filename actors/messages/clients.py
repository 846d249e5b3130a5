"""What clients and the gateway tell each other: requests, and what becomes of them."""

from actors.messages.base import Address, ErrorInfo, FinishReason, Message, TokenRecord
from actors.stage_clock import StageTimes
from runtime.sampling_params import SamplingParams
from runtime.text_stream import TextOptions

# --- client -> gateway


class Submit(Message, frozen=True, kw_only=True):
    """A validated request. All its events go to `client`; exactly one of them is terminal.

    Only requests with the same `cache_salt` share cached prefixes. The smaller its `priority`, the sooner it is placed.
    `timeout_s` bounds its whole time.
    """

    request: str
    client: Address
    prompt: tuple[int, ...]
    params: SamplingParams
    num_choices: int
    text: TextOptions = TextOptions()
    cache_salt: str | None = None
    priority: int = 0
    queue_timeout_s: float
    progress_timeout_s: float
    timeout_s: float | None = None


class Disconnect(Message, frozen=True, kw_only=True):
    """The client is gone: everything of the request is aborted, nothing more is sent to it."""

    request: str


class Drain(Message, frozen=True, kw_only=True):
    """Refuse new requests from now on; `Drained` goes to `reply_to` once none is left."""

    reply_to: Address


# --- gateway -> client


class Delta(Message, frozen=True, kw_only=True):
    """New accepted tokens of one choice and the text they release.

    Text is held back while it could be the beginning of a stop string or of an incomplete character, so a delta may
    carry tokens and no text. The delta with `finish` is the choice's last; `stop_match` names the matched stop string
    or token id. A choice's first delta brings the logprobs of the prompt behind its first token, if they were wanted.
    """

    request: str
    choice: int
    text: str
    tokens: tuple[TokenRecord, ...]
    finish: FinishReason | None = None
    stop_match: str | int | None = None
    prompt_logprobs: tuple[TokenRecord, ...] = ()


class Completed(Message, frozen=True, kw_only=True):
    """Terminal: every choice has finished. `completion_tokens` sums the choices, `timings` has one entry for each."""

    request: str
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    timings: tuple[StageTimes, ...]


class Failed(Message, frozen=True, kw_only=True):
    """Terminal: the request was refused or could not be finished."""

    request: str
    error: ErrorInfo


class Drained(Message, frozen=True, kw_only=True):
    """No request is left."""
