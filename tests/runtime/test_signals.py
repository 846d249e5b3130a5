import contextlib
import os
import signal
from unittest.mock import patch

from runtime.cli import signals


def test_an_interrupt_cannot_get_lost_in_a_library() -> None:
    before = signal.getsignal(signal.SIGINT)
    with patch.object(signals, "leave") as left:
        with signals.leave_on_interrupt(), contextlib.suppress(KeyboardInterrupt):  # as a library's callback may do
            os.kill(os.getpid(), signal.SIGINT)
        left.assert_called_once_with(130)
    assert signal.getsignal(signal.SIGINT) is before
