"""/status: what the server does at this moment, as one JSON object for people and the status page."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from latentkv.server.context import Context, Ctx
from latentkv.server.engine_thread import EngineState

router = APIRouter()


@router.get("/status")
async def status(context: Ctx) -> dict[str, Any]:
    """Load, speed over the last seconds, latencies of the newest requests, cache by state and tier, and who computes.

    Before the model is loaded, only `state` and `model` say something.
    """
    service = context.service
    told: dict[str, Any] = {
        "state": "draining" if service.draining else service.thread.state.value,
        "model": context.options.model_names[0],
        "requests": {"live": service.live_choices, "most_live": service.max_running + context.options.max_queue},
        "speed": context.recent.speeds(),
        "latency_ms": context.recent.latencies_ms(),
    }
    stats = service.thread.stats
    if stats is None or service.thread.state is EngineState.LOADING:
        return told
    told["requests"] |= {"waiting": stats.waiting, "running": stats.running, "preemptions": stats.preemptions}
    told["pages"] = {"free": stats.free_pages, "held": stats.held_pages, "cached": stats.cached_pages}
    told["bytes"] = {"device": stats.cache_bytes, "host": stats.host_bytes, "disk": stats.disk_bytes}
    told["tokens"] = {
        "prefill": stats.prefill_tokens,
        "decode": stats.decode_tokens,
        "reused": stats.reused_tokens,
        "bytes_per_token": stats.bytes_per_token,
    }
    return told | _engine(context)


def _engine(context: Context) -> dict[str, Any]:
    engine = context.service.thread.engine
    told: dict[str, Any] = {
        "format": engine.cache_format,
        "geometry": engine.model.geometry.kind,
        "context_tokens": engine.capacity_tokens,
    }
    if context.guard is not None:
        guard = context.guard.state()
        told["backend"] = {"active": guard.active, "preferred": guard.preferred, "steps": guard.paths}
    return told
