"""What is asked of a server before it is measured: that it is there, which models it serves, and its version."""

from typing import Any

import httpx

from loadtest.connection import Address
from loadtest.errors import UsageError

TIMEOUT_S = 10.0
EMULATED = "emulated"
"""How the engine of a server begins that does not compute: its steps last as long as a table says."""


def inspect(address: Address, api_key: str | None, model: str | None) -> tuple[str, dict[str, Any]]:
    """The model to ask for, and the server's own words about itself. Raises UsageError when it cannot be measured.

    A server without `/v1/models` is taken as it is when the model is named.
    """
    headers = {} if api_key is None else {"Authorization": f"Bearer {api_key}"}
    origin = f"{address.scheme}://{address.authority}"
    # No proxy from the environment: the load does not go through one either.
    with httpx.Client(timeout=TIMEOUT_S, headers=headers, trust_env=False, verify=httpx.create_ssl_context()) as client:
        try:
            response = client.get(f"{origin}{address.path}/v1/models")
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise UsageError(f"{origin}: no server answers there: {error or type(error).__name__}") from None
        return _choose(response, model, origin), {"url": origin + address.path} | _version(client, address)


def _choose(response: httpx.Response, model: str | None, origin: str) -> str:
    if response.status_code == 401:
        raise UsageError(f"{origin}: the server wants another --api-key (HTTP 401)")
    try:
        served = [str(entry["id"]) for entry in response.json()["data"]] if response.is_success else []
    except (ValueError, KeyError, TypeError):
        served = []
    if model is not None and (not served or model in served):
        return model
    if model is not None:
        raise UsageError(f"--model {model!r}: allowed: what the server serves: {', '.join(served)}")
    if len(served) != 1:
        said = f"serves {', '.join(served)}" if served else f"lists no models (HTTP {response.status_code})"
        raise UsageError(f"--model is needed: {origin} {said}")
    return served[0]


def _version(client: httpx.Client, address: Address) -> dict[str, str | None]:
    """The version and, of a server of this project, the engine; None where the server does not say."""
    try:
        response = client.get(f"{address.scheme}://{address.authority}{address.path}/version")
        told = response.json() if response.is_success else {}
    except (httpx.HTTPError, ValueError):
        told = {}
    found = told if isinstance(told, dict) else {}
    return {name: None if found.get(name) is None else str(found[name]) for name in ("version", "engine")}


def emulated(server: dict[str, Any]) -> str | None:
    """What the device times of a server are read from that computes nothing; None for one that does compute."""
    engine: str | None = server.get("engine")
    if engine is None or not engine.startswith(EMULATED):
        return None
    return engine.partition(":")[2].strip() or "from a table without a label"


def engine_line(server: dict[str, Any]) -> str | None:
    """What the reader of a figure must know about the engine that it is of."""
    label = emulated(server)
    if label is not None:
        return f"EMULATED: device steps only last as long as a table says: {label}"
    return f"engine: {server['engine']}" if server.get("engine") else None
