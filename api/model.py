"""What the HTTP edge knows of the server behind it: the model it serves, its limits, and whether it is ready.

The composition root fills these once the model folder is read; nothing here changes afterwards.
"""

import secrets
from collections.abc import Callable
from typing import Literal

import msgspec

from actors.messages import WorkerStatus
from api.parsers.forms import OutputForms
from runtime import __version__
from runtime.constraints import check_grammar
from runtime.model_config import GenerationDefaults
from runtime.settings import REAL_ENGINE
from runtime.tokens import Tokenizer

ServerState = Literal["starting", "ready", "degraded", "draining"]


def draw_os_seed() -> int:
    """A seed for a request that brought none, from the operating system's source."""
    return secrets.randbits(63)


class ServedModel(msgspec.Struct, frozen=True, kw_only=True):
    """One model under one or several names, the first of which is shown.

    `max_request_tokens` is what the KV pool holds for a single sequence, `max_choices` bounds `n` (the rows of a
    decode slice) and `max_answers` the choices of one HTTP request, all its prompts together. `check_grammar` says why
    a grammar cannot be compiled, None for one that can. `root` is what `/v1/models` shows as the model's origin,
    `engine` what `/version` says of what computes: `jax`, or a line that begins with `emulated`. `forms` tells how its
    text is parted into reasoning, content and calls.
    """

    names: tuple[str, ...]
    tokenizer: Tokenizer
    max_context_tokens: int
    max_request_tokens: int
    vocab_size: int
    eos_token_ids: tuple[int, ...]
    created: int
    defaults: GenerationDefaults = GenerationDefaults()
    max_choices: int = 128
    max_answers: int = 256
    check_grammar: Callable[[str], str | None] = check_grammar
    root: str | None = None
    draw_seed: Callable[[], int] = draw_os_seed
    engine: str = REAL_ENGINE
    forms: OutputForms = OutputForms()

    @property
    def think_start(self) -> tuple[int, ...]:
        """The tokens that open a block of thoughts; empty for a model without."""
        return tuple(self.tokenizer.encode(self.forms.reasoning.begin)) if self.forms.reasoning else ()

    @property
    def think_end(self) -> tuple[int, ...]:
        """The tokens that close a block of thoughts; empty for a model without."""
        return tuple(self.tokenizer.encode(self.forms.reasoning.end)) if self.forms.reasoning else ()

    @property
    def max_total_tokens(self) -> int:
        """Most tokens, prompt and answer together, that one sequence may have."""
        return min(self.max_context_tokens, self.max_request_tokens)

    @property
    def holder(self) -> str:
        """What `max_total_tokens` comes from, for messages."""
        return "context" if self.max_total_tokens == self.max_context_tokens else "KV pool"

    @property
    def system_fingerprint(self) -> str:
        """Changes when answers to the same seed may change."""
        return f"runtime-{__version__}" if self.engine == REAL_ENGINE else f"runtime-{__version__}-emulated"


class Readiness(msgspec.Struct, frozen=True, kw_only=True):
    """How the server is now; `detail` is one line for a person.

    Requests are taken when it is ready or degraded, unless `takes_requests` says otherwise.
    """

    state: ServerState
    detail: str | None = None
    workers: tuple[WorkerStatus, ...] = ()
    takes_requests: bool | None = None

    @property
    def is_well(self) -> bool:
        """Whether `/health` answers 200."""
        return self.state in ("ready", "degraded")

    @property
    def is_open(self) -> bool:
        """Whether requests are taken."""
        return self.is_well if self.takes_requests is None else self.takes_requests


class ApiSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Knobs of the HTTP edge. Without `api_keys` everybody is let in, whatever header they send.

    Pages of `cors_origins` may use the server from a browser. `body_timeout_s` bounds the time from a request's head to
    the end of its body. `response_store_size` is how many responses are kept for `/v1/responses/{id}` (0: none), in at
    most `response_store_bytes`, each for `response_store_age_s` after its last use.
    """

    api_keys: tuple[str, ...] = ()
    cors_origins: tuple[str, ...] = ()
    max_body_bytes: int = 16 * 2**20
    body_timeout_s: float = 60.0
    ping_interval_s: float = 15.0
    queue_timeout_s: float = 600.0
    progress_timeout_s: float = 300.0
    tokenizer_threads: int = 4
    response_store_size: int = 1024
    response_store_bytes: int = 256 * 2**20
    response_store_age_s: float = 86400.0
