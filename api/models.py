"""`/v1/models`: the served names."""

from typing import Any

from api.model import ServedModel


def model_entry(model: ServedModel, name: str) -> dict[str, Any]:
    """One name, with the two extra keys that load generators read."""
    return {
        "id": name,
        "object": "model",
        "created": model.created,
        "owned_by": "runtime",
        "root": model.root or model.names[0],
        "max_model_len": model.max_context_tokens,
    }


def model_list(model: ServedModel) -> dict[str, Any]:
    """All names; the first is the one that answers carry when the client names none."""
    return {"object": "list", "data": [model_entry(model, name) for name in model.names]}
