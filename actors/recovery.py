"""How long actors wait for each other before they act. See "When something fails" in docs/architecture.md."""

import msgspec


class RecoveryOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Times in seconds.

    Every `heartbeat_s` workers tell the scheduler, and the scheduler the gateway, what they hold. What is missing there
    for `grace_s` is lost. A stream that waits `gap_timeout_s` for a token between others starts another attempt. Chunks
    and hand-overs without an answer are sent again after `resend_s`, then after twice that and so on, at most
    `max_resends` times. A worker that says nothing for `dead_after_s` is taken for dead.
    """

    heartbeat_s: float = 1.0
    grace_s: float = 3.0
    gap_timeout_s: float = 5.0
    resend_s: float = 2.0
    max_resends: int = 3
    dead_after_s: float = 10.0
