"""The limits that `/openapi.json` states are those that requests are checked against: what lies at a limit is taken,
and what lies just beyond is refused by name."""

from typing import Any

import httpx
import pytest

from tests.api.asked import asked
from tests.api.document import whole_document
from tests.api.parameter_cases import BODIES
from tests.api.parameters import NUMBERS, Parameter, all_parameters, probes
from tests.api.response_events import parse_stream
from tests.api.whole_app import API_KEY, whole_app

pytestmark = pytest.mark.anyio

OTHERS: dict[Parameter, dict[str, Any]] = {
    ("ChatBody", "top_logprobs"): {"logprobs": True},
    **{(body, "stop_token_ids"): {"ignore_eos": True} for body in ("ChatBody", "CompletionBody", "ResponsesBody")},
}
"""What a field needs beside it: stop ids share their limit with the model's own."""

LIMITED = {key: schema for key, schema in all_parameters(whole_document()).items() if any(probes(schema))}
OF_BODIES = [key for key in LIMITED if key[0] in BODIES]
OF_QUERIES = [key for key in LIMITED if key[0] not in BODIES and key[0] != "header"]

ENDLESS = {
    "max_tokens", "max_completion_tokens", "max_output_tokens", "n", "best_of", "min_tokens", "truncate_prompt_tokens",
}  # fmt: skip
"""Numbers whose other end is the model's, the server's or another field's, which no document can know."""


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


@pytest.mark.parametrize(("owner", "name"), OF_QUERIES)
async def test_queries(owner: str, name: str) -> None:
    method, _, path = owner.partition(" ")
    transport = httpx.ASGITransport(app=whole_app())
    key = {"authorization": f"Bearer {API_KEY}"}
    async with httpx.AsyncClient(transport=transport, base_url="http://test", headers=key) as http:
        made = await http.post("/v1/responses", json={"input": "Hello", "background": True, "stream": True})
        one = path.replace("{id}", parse_stream(made.content)[0]["response"]["id"])
        others = {"stream": "true"} if name == "starting_after" else {}
        for value, is_allowed in probes(LIMITED[owner, name]):
            response = await http.request(method, one, params=others | {name: "" if value is None else value})
            assert response.status_code == (200 if is_allowed else 400), (value, response.text)
            if not is_allowed:
                assert response.json()["error"]["param"] == name


def test_both_ends_of_a_number_are_told() -> None:
    document = whole_document()
    ends = ({"minimum", "exclusiveMinimum"}, {"maximum", "exclusiveMaximum"})
    open_ended = {
        (owner, name)
        for (owner, name), schema in all_parameters(document).items()
        if {one.get("type") for one in schema.get("anyOf", [schema])} & NUMBERS
        and not all(end & schema.keys() for end in ends)
        and not schema["description"].startswith("Refused")
    }
    assert {name for _, name in open_ended} == ENDLESS
    assert set(OF_BODIES) | set(OF_QUERIES) | {("header", "x-runtime-timing")} == set(LIMITED)
    assert len(OF_QUERIES) == 4
