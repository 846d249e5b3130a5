"""A small part of the campaign; `python -m tests.api.schemathesis_campaign` is the whole."""

import pytest

from tests.api.schemathesis_campaign import Campaign


@pytest.mark.slow
def test_nothing_that_the_document_suggests_breaks_the_server() -> None:
    campaign = Campaign(cases=200, seed=1)
    campaign.run()
    assert campaign.failures == {}
    assert campaign.num_cases >= 200
    answered = {label for label, mode, status in campaign.statuses if (mode, status // 100) == ("positive", 2)}
    assert {"POST /v1/chat/completions", "POST /v1/completions", "GET /v1/models"} <= answered
