"""`/openapi.json`: complete and well-formed. That its limits are true is shown by `test_every_limit`."""

import json
from collections.abc import Callable
from typing import Any

import httpx
import msgspec
import pytest
from jsonschema import Draft202012Validator
from starlette.applications import Starlette

from actors.messages import Address, DrainAnswer, WorkerStatus
from api.admin import Admin
from api.app import create_app
from api.model import ApiSettings, Readiness, ServedModel
from api.openapi import openapi_document, route_methods
from api.openapi_fields import NOTES, note_of
from api.openapi_routes import OPERATIONS
from tests.api.fake_client import FakeClient

pytestmark = pytest.mark.anyio
CHAT = "/v1/chat/completions"


class NoWorkers:
    async def drain_worker(self, worker: Address, timeout_s: float) -> DrainAnswer | None:
        return None

    async def resume_worker(self, worker: Address) -> DrainAnswer | None:
        return None


@pytest.fixture
def whole_app(model: ServedModel, client: FakeClient) -> Starlette:
    """With every route that there can be."""
    workers: Callable[[], tuple[WorkerStatus, ...]] = lambda: ()  # noqa: E731
    admin = Admin(key="k", client=NoWorkers(), workers=workers)
    return create_app(model, client, lambda: Readiness(state="ready"), ApiSettings(), admin)


def test_every_route_has_an_operation_and_every_operation_a_route(whole_app: Starlette) -> None:
    described = [(operation.path, operation.method) for operation in OPERATIONS]
    assert set(described) == route_methods(whole_app.routes)
    assert len(described) == len(set(described))
    assert len({operation.id for operation in OPERATIONS}) == len(OPERATIONS)


def test_schemas_are_schemas_and_references_lead_somewhere(whole_app: Starlette) -> None:
    document = openapi_document(whole_app.routes, needs_key=True)
    schemas = document["components"]["schemas"]
    for schema in schemas.values():
        Draft202012Validator.check_schema(schema)
    assert {reference.removeprefix("#/components/schemas/") for reference in references(document)} <= set(schemas)


def references(part: Any) -> set[str]:
    if isinstance(part, dict):
        own = {part["$ref"]} if isinstance(part.get("$ref"), str) else set()
        return own.union(*map(references, part.values()))
    return set().union(*map(references, part)) if isinstance(part, list) else set()


def test_every_request_field_is_described(whole_app: Starlette) -> None:
    schemas = openapi_document(whole_app.routes, needs_key=True)["components"]["schemas"]
    bodies = {name for name in schemas if name in NOTES}
    assert bodies == set(NOTES), "notes of structs that no route takes"
    for name in bodies:
        fields = set(schemas[name]["properties"])
        assert {field for field in fields if note_of(name, field) is None} == set(), name
        assert set(NOTES[name]) - fields == set(), name
    taken = {one.body.__name__ for one in OPERATIONS if one.body is not None}
    assert taken <= bodies


async def test_the_route_shows_the_document_of_its_application(http: httpx.AsyncClient, app: Starlette) -> None:
    shown = (await http.get("/openapi.json")).json()
    document = openapi_document(app.routes, needs_key=False)
    assert shown == json.loads(json.dumps(document))
    assert shown["openapi"] == "3.1.0"
    assert not any(path.startswith("/admin") for path in shown["paths"]), "there are none without an admin key"
    assert all(one["security"] == [] for path in shown["paths"].values() for one in path.values())


def test_keys_are_told_where_they_are_needed(whole_app: Starlette) -> None:
    paths = openapi_document(whole_app.routes, needs_key=True)["paths"]
    assert paths[CHAT]["post"]["security"] == [{"key": []}]
    assert "401" in paths[CHAT]["post"]["responses"]
    assert paths["/health"]["get"]["security"] == []
    assert paths["/admin/workers"]["get"]["security"] == [{"adminKey": []}]


def test_the_types_of_answers_can_be_decoded_into(whole_app: Starlette) -> None:
    """They are only ever described, so that one which msgspec cannot build would go unnoticed."""
    for operation in OPERATIONS:
        for kind in (operation.body, operation.answer, operation.events):
            if kind is not None:
                msgspec.json.Decoder(kind)
