"""Where a request's time went, in the server's own words: the stages that `x-runtime-timing: 1` asks it to tell."""

import msgspec

HEADER = "x-runtime-timing"

STAGES = ("queue", "prefill", "transfer", "handoff", "decode")
"""In the order in which a request passes them."""


class Timing(msgspec.Struct, frozen=True, kw_only=True):
    """One choice's stages, seconds, which add up to `total_s`; the workers are those of its last attempt.

    `transfer_s` is what the client waits for: KV that travels while the prompt is still computed costs nothing.
    """

    queue_s: float
    prefill_s: float
    transfer_s: float
    handoff_s: float
    decode_s: float
    total_s: float
    attempts: int = 1
    prefill_worker: str | None = None
    decode_worker: str | None = None

    def stage_s(self, stage: str) -> float:
        """Seconds in one of `STAGES`."""
        seconds: float = getattr(self, f"{stage}_s")
        return seconds
