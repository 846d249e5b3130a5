"""What is kept of one request: when it was due, sent, first answered and done, every chunk's time, and how it ended.

Times are seconds after the start of its phase, on the client's monotonic clock. Latency is counted from `scheduled_s`,
not from `sent_s`: a client that sends late must not make the server look fast.
"""

from typing import Literal

import msgspec

from loadtest.timing import Timing

Outcome = Literal["ok", "failed", "cancelled", "interrupted"]
"""`cancelled` by the plan, after which the server owes nothing; `interrupted` by the user."""

CountedBy = Literal["each", "spread", "chunks"]
"""Where tokens per chunk come from: a usage in each chunk, the final usage spread over the chunks, or one per chunk."""


class Record(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One request, whatever became of it."""

    index: int
    scheduled_s: float
    sent_s: float
    ended_s: float
    outcome: Outcome
    connected_s: float | None = None
    first_byte_s: float | None = None
    chunk_times_s: tuple[float, ...] = ()
    chunk_tokens: tuple[int, ...] = ()
    counted_by: CountedBy = "chunks"
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    usage_tokens: int | None = None
    wanted_prompt_tokens: int | None = None
    wanted_output_tokens: int | None = None
    status: int | None = None
    finish_reason: str | None = None
    error: str | None = None
    timing: Timing | None = None

    @property
    def lag_s(self) -> float:
        """How late the client was."""
        return self.sent_s - self.scheduled_s

    @property
    def output_tokens(self) -> int:
        """The server's count, or else one per chunk."""
        return sum(self.chunk_tokens)

    @property
    def input_tokens(self) -> int:
        """The server's count, or else what the data set knows."""
        return self.prompt_tokens if self.prompt_tokens is not None else self.wanted_prompt_tokens or 0

    @property
    def ttft_s(self) -> float | None:
        """From when it was due to the first chunk that carries a token."""
        return self.chunk_times_s[0] - self.scheduled_s if self.chunk_times_s else None

    @property
    def e2e_s(self) -> float | None:
        """From when it was due to the last chunk that carries a token."""
        return self.chunk_times_s[-1] - self.scheduled_s if self.chunk_times_s else None

    @property
    def tpot_s(self) -> float | None:
        """(E2E - TTFT) / (tokens - 1); an answer of one token has none."""
        tokens = self.output_tokens
        return (self.chunk_times_s[-1] - self.chunk_times_s[0]) / (tokens - 1) if tokens > 1 else None

    def gaps_s(self) -> list[float]:
        """Time from each chunk to the next."""
        return [later - earlier for earlier, later in zip(self.chunk_times_s, self.chunk_times_s[1:], strict=False)]

    def itls_s(self) -> list[float]:
        """One per token after the first chunk: a chunk of k tokens counts as k, each a k-th of its gap."""
        itls = list[float]()
        for gap_s, tokens in zip(self.gaps_s(), self.chunk_tokens[1:], strict=True):
            itls += [gap_s / tokens] * tokens if tokens else []
        return itls


def spread_tokens(total: int, num_chunks: int) -> tuple[int, ...]:
    """`total` tokens over the chunks as evenly as whole numbers allow, the later ones first."""
    cuts = [total * index // num_chunks for index in range(num_chunks + 1)]
    return tuple(high - low for low, high in zip(cuts, cuts[1:], strict=False))
