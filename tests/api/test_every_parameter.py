"""Every parameter that `/openapi.json` lists has an effect that a test shows, or is refused by name."""

import inspect
import json
import re
from collections.abc import Iterator
from importlib import import_module
from typing import Any

import httpx
import msgspec
import pytest

from tests.api.asked import asked
from tests.api.document import whole_document
from tests.api.field_cases import Effect, Elsewhere, Refusal, Seen
from tests.api.parameter_cases import BODIES, PARAMETERS, Ignored, all_cases
from tests.api.parameters import all_parameters, body_of
from tests.api.whole_app import ADMIN_KEY, API_KEY, whole_app

pytestmark = pytest.mark.anyio
_PASSING = re.compile(r'[0-9a-f]{32}|"(created|created_at|completed_at)":\d+(\.\d+)?')
SENT = [key for key, case in PARAMETERS.items() if not isinstance(case, Elsewhere)]
MINIMAL: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "Hello"}]},
    "/v1/completions": {"prompt": "Hello"},
    "/v1/responses": {"input": "Hello"},
    "/tokenize": {"prompt": "Hello"},
    "/detokenize": {"tokens": [40]},
    "/admin/chaos": {"spec": "decode.0:slow=2"},
}


def test_none_is_without_a_case_and_no_case_without_a_parameter() -> None:
    document = whole_document()
    cases = all_cases(lambda route: body_of(document, route))
    listed = set(all_parameters(document))
    assert listed - set(cases) == set(), "listed, and shown by no test"
    assert set(cases) - listed == set(), "of no parameter"


def test_the_walk_finds_what_a_document_hides() -> None:
    """At any depth, behind references that go in circles, and in every part of an operation."""
    inner = {"type": "object", "properties": {"deep": {"type": "array", "items": {"$ref": "#/x/Outer"}}}}
    outer = {"properties": {"one": {"anyOf": [inner, {"type": "null"}]}, "map": {"additionalProperties": inner}}}
    operation = {
        "parameters": [{"name": "q", "in": "query", "schema": {}}, {"name": "h", "in": "header", "schema": {}}],
        "security": [{"key": []}],
        "requestBody": {"content": {"application/json": {"schema": {"$ref": "#/x/Outer"}}}},
    }
    document = {"paths": {"/p": {"post": operation}}, "components": {"schemas": {"Outer": outer}}}
    body = {("Outer", "one"), ("Outer.one", "deep"), ("Outer", "map"), ("Outer.map", "deep")}
    assert set(all_parameters(document)) == {("POST /p", "q"), ("header", "h"), ("security", "key"), *body}


@pytest.mark.parametrize(("owner", "name"), [key for key in PARAMETERS if key not in SENT])
def test_the_test_of_another_place_exists(owner: str, name: str) -> None:
    case = PARAMETERS[owner, name]
    assert isinstance(case, Elsewhere)
    module_name, _, function_name = case.test.partition(":")
    module = import_module(module_name)
    function = getattr(module, function_name)
    assert function_name.startswith("test_")
    assert function.__module__ == module_name
    is_named = owner == "security" or f"{{{name}}}" in owner or name in inspect.getsource(module)
    assert is_named, "the test does not speak of the parameter"


@pytest.mark.parametrize(("owner", "name"), SENT)
async def test_the_parameter(owner: str, name: str) -> None:
    async def ask(**fields: Any) -> tuple[httpx.Response, Seen]:
        return await asked(*BODIES[owner](**fields))

    case = PARAMETERS[owner, name]
    assert not isinstance(case, Elsewhere)
    response, shown = await ask(**case.others, **{name: case.value})
    if isinstance(case, Refusal):
        assert response.status_code in (400, 404), response.text
        error = response.json()["error"]
        assert name in re.split(r"[.\[\]]+", error["param"])
        assert case.words in error["message"]
        assert shown.requests == []
        return
    assert response.status_code == 200, response.text
    plain_response, plain = await ask(**case.others)
    assert plain_response.status_code == 200, plain_response.text
    if isinstance(case, Effect):
        assert case.look(shown) == case.expected
        assert case.look(plain) != case.expected
    else:
        assert isinstance(case, Ignored)
        assert _lasting(shown) == _lasting(plain)


def _lasting(seen: Seen) -> str:
    """Requests and answer without what is another each time."""
    text = json.dumps([msgspec.to_builtins(seen.requests), seen.answer], separators=(",", ":"))
    return _PASSING.sub("", text)


# --- what comes in headers


def operations() -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, item in whole_document()["paths"].items():
        for method, operation in item.items():
            yield method, path, operation


async def send(method: str, path: str, **headers: str) -> httpx.Response:
    transport = httpx.ASGITransport(app=whole_app())
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
        body = MINIMAL.get(path) if method == "post" else None
        return await http.request(method, re.sub(r"{\w+}", "x", path), json=body, headers=headers)


def key_of(operation: dict[str, Any]) -> str | None:
    names = {name for scheme in operation["security"] for name in scheme}
    return {"key": API_KEY, "adminKey": ADMIN_KEY}[names.pop()] if names else None


async def test_a_request_id_comes_back_from_every_route() -> None:
    for method, path, operation in operations():
        assert "x-request-id" in {one["name"] for one in operation["parameters"]}
        headers = {"authorization": f"Bearer {key_of(operation)}", "x-request-id": "mine-7"}
        assert (await send(method, path, **headers)).headers["x-request-id"] == "mine-7", path


async def test_stage_times_come_where_they_are_offered() -> None:
    offered = 0
    for method, path, operation in operations():
        if "x-runtime-timing" not in {one["name"] for one in operation["parameters"]}:
            continue
        offered += 1
        key = {"authorization": f"Bearer {key_of(operation)}"}
        for value, comes in (("1", True), ("0", False)):
            answer = await send(method, path, **key, **{"x-runtime-timing": value})
            assert answer.status_code == 200, answer.text
            assert ("runtime_timing" in answer.json()) is comes
        refused = await send(method, path, **key, **{"x-runtime-timing": "2"})
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "x-runtime-timing")
    assert offered == 3


async def test_keys_open_what_asks_for_them() -> None:
    for method, path, operation in operations():
        key = key_of(operation)
        other = {API_KEY: ADMIN_KEY, ADMIN_KEY: API_KEY, None: "any"}[key]
        sent = [{}, {"authorization": f"Bearer {other}"}, {"authorization": f"Basic {key}"}]
        for headers in sent:
            assert ((await send(method, path, **headers)).status_code == 401) is (key is not None), (method, path)
        assert (await send(method, path, authorization=f"Bearer {key}")).status_code != 401, (method, path)
