"""Three times the load that a server can take, for a few seconds: nothing is lost, and refusals are clean.

`python -m tests.chaos.overload` looks at times, on a quiet machine: here a request may wait as long as the test lasts.
"""

import pytest

from tests.chaos.overload import Options, broken_promises, run

pytestmark = pytest.mark.slow
PATIENT = 120.0


@pytest.mark.parametrize("demo", [False, True], ids=["emulated", "demo"])
def test_whatever_is_accepted_is_answered_in_full_and_the_rest_refused(demo: bool) -> None:
    options = Options(
        demo=demo,
        step_s=0.02,
        max_queued=12,
        answer_tokens=24,
        queue_timeout_s=PATIENT,
        progress_timeout_s=PATIENT,
        capacity_s=4.0,
        overload_s=4.0,
        times=4.0,
        lone=2,
    )
    outcome = run(options)
    assert broken_promises(outcome) == []
    assert outcome.accepted
    assert all(reply.completed for reply in [*outcome.before, *outcome.after])
