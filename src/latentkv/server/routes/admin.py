"""/admin/backend: who computes attention, what failed, and switching under traffic; /admin/check: the pages' books.

The admin key was checked before these run (server/auth.py).
"""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from typing import Any

from fastapi import APIRouter

from latentkv.backends.guard import Guard
from latentkv.cache.pages import PageAccountingError
from latentkv.engine.engine import Engine
from latentkv.errors import OptionError, UnsupportedError
from latentkv.server.api_error import APIError, refused
from latentkv.server.context import Context, Ctx
from latentkv.server.protocol.admin import BackendBody

router = APIRouter(prefix="/admin")
EVENTS_SHOWN = 20


@router.get("/backend")
async def backend(context: Ctx) -> dict[str, Any]:
    """The attention backends, their state, their failures, and the shadow's comparisons."""
    return _state(_guard(context))


@router.post("/backend")
async def switch(body: BackendBody, context: Ctx) -> dict[str, Any]:
    """Switch to, disable or enable a backend from the next step on; the state afterwards."""
    guard = _guard(context)
    act = {"switch": guard.switch, "disable": guard.disable, "enable": guard.enable}[body.action]
    try:
        act(body.backend)
    except (OptionError, UnsupportedError) as error:
        raise refused("backend", str(error).removeprefix("backend: ")) from error
    return _state(guard)


@router.post("/check")
async def check(context: Ctx) -> dict[str, Any]:
    """Compare the books of pages, requests and prefixes between two steps; `problem` is null when they agree."""
    context.service.check_ready()
    return {"problem": await asyncio.wrap_future(context.service.thread.call(_problem))}


def _problem(engine: Engine) -> str | None:
    try:
        engine.check()
    except (PageAccountingError, ValueError) as error:
        return str(error)
    return None


def _guard(context: Context) -> Guard:
    if context.guard is None:
        raise APIError(404, "this server runs one fixed backend.", code="no_guard")
    return context.guard


def _state(guard: Guard) -> dict[str, Any]:
    state = guard.state()
    shadow = guard.shadow.state() if guard.shadow is not None else None
    return {
        "preferred": state.preferred,
        "active": state.active,
        "backends": state.breakers,
        "steps": state.paths,
        "failures": [
            {"backend": name, "reason": reason, "count": count} for (name, reason), count in state.failures.items()
        ],
        "replaced_steps": [{"from": old, "to": new, "count": count} for (old, new), count in state.replaced.items()],
        "not_finite_calls": state.not_finite,
        "events": [asdict(event) for event in guard.events[-EVENTS_SHOWN:]],
        "shadow": asdict(shadow) if shadow is not None else None,
    }
