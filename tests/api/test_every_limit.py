"""The limits that `/openapi.json` states are those that requests are checked against: what lies at a limit is taken,
and what lies just beyond is refused by name."""

from typing import Any

import httpx
import pytest

from tests.api.asked import asked
from tests.api.document import whole_document
from tests.api.parameter_cases import BODIES, FUNCTION
from tests.api.parameters import Parameter, all_parameters, probes
from tests.api.whole_app import API_KEY, whole_app

pytestmark = pytest.mark.anyio

OTHERS: dict[Parameter, dict[str, Any]] = {
    ("ChatBody", "top_logprobs"): {"logprobs": True},
    **{(body, "stop_token_ids"): {"ignore_eos": True} for body in ("ChatBody", "CompletionBody", "ResponsesBody")},
}
"""What a field needs beside it: stop ids share their limit with the model's own."""

PASSING: dict[Parameter, Any] = {
    ("ChatBody", "messages"): [{"role": "user", "content": "Hello"}],
    ("ResponsesBody", "input"): [{"role": "user", "content": "Hello"}],
}
"""Lists of structures that are filled with more than letters."""

LIMITED = {key: schema for key, schema in all_parameters(whole_document()).items() if any(probes(schema))}
OF_BODIES = [key for key in LIMITED if key[0] in BODIES]
OF_QUERIES = [key for key in LIMITED if key[0] not in BODIES and key[0] != "header"]

ENDLESS = {"max_tokens", "max_completion_tokens", "max_output_tokens", "n", "min_tokens", "truncate_prompt_tokens"}
"""Numbers whose other end is the model's or the server's, which no document can know."""


def grammar(size: int) -> str:
    return 'root ::= "x"'.ljust(size)


@pytest.mark.parametrize(("owner", "name"), OF_BODIES)
async def test_fields_of_bodies(owner: str, name: str) -> None:
    key = (owner, name)
    for value, is_allowed in probes(LIMITED[key]):
        if is_allowed and "grammar" in name:
            value = grammar(len(value))
            if value.rstrip() != grammar(0):
                continue
        response, seen = await asked(*BODIES[owner](**OTHERS.get(key, {}) | {name: value}))
        if is_allowed:
            assert response.status_code in (200, 202), (value, response.text)
            continue
        assert response.status_code == 400, value
        assert name in response.json()["error"]["param"], response.text
        assert seen.requests == []
