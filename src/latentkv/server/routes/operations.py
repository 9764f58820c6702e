"""/health, /ready and /metrics: for supervisors, load balancers and Prometheus. None of them waits for the engine."""

from __future__ import annotations

import time
from typing import Any

from fastapi import APIRouter
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.responses import JSONResponse, Response

from latentkv.server.context import Ctx
from latentkv.server.engine_thread import EngineState

router = APIRouter()


@router.get("/health", response_model=None)
async def health(context: Ctx) -> Response:
    """200 while the process does its work or prepares to; 503 when its engine is dead and it has to be restarted."""
    thread = context.service.thread
    began = thread.step_started
    body: dict[str, Any] = {
        "status": "ok" if thread.state is not EngineState.DEAD else "dead",
        "engine": thread.state.value,
        "seconds_in_step": round(time.perf_counter() - began, 3) if began is not None else 0.0,
    }
    return JSONResponse(body, status_code=503 if thread.state is EngineState.DEAD else 200)


@router.get("/ready", response_model=None)
async def ready(context: Ctx) -> Response:
    """200 while requests are taken; 503 while the model loads, during shutdown and with a dead engine."""
    context.service.check_ready()
    return JSONResponse({"status": "ready"})


@router.get("/metrics", response_model=None)
async def metrics(context: Ctx) -> Response:
    """Prometheus' text format."""
    return Response(context.metrics.text(), media_type=CONTENT_TYPE_LATEST)
