"""/admin: what only an operator may do. The admin key was checked before these run (server/auth.py)."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from fastapi import APIRouter

from latentkv.server.api_error import APIError
from latentkv.server.context import Ctx

router = APIRouter(prefix="/admin")


@router.get("/backend")
async def backend(context: Ctx) -> dict[str, Any]:
    """Who computes attention, who may, and what failed."""
    if context.guard is None:
        raise APIError(404, "this server runs one fixed backend.", code="no_guard")
    state = asdict(context.guard.state())
    return state | {
        name: [{"backend": one, "to": other, "count": number} for (one, other), number in state[name].items()]
        for name in ("failures", "replaced")
    }
