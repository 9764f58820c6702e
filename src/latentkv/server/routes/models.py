"""/v1/models: the names of the one model that is served."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from latentkv.server.api_error import APIError
from latentkv.server.context import Context, Ctx

router = APIRouter(prefix="/v1/models")


@router.get("")
async def list_models(context: Ctx) -> dict[str, Any]:
    """All names of the model."""
    return {"object": "list", "data": [_model(name, context) for name in context.options.model_names]}


@router.get("/{name:path}")
async def model(name: str, context: Ctx) -> dict[str, Any]:
    """One name of the model."""
    if name not in context.options.model_names:
        raise APIError(404, f"model: there is no {name!r}.", param="model", code="model_not_found")
    return _model(name, context)


def _model(name: str, context: Context) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": context.started, "owned_by": "latentkv"}
