"""Structured logs: one line an event, for people or as JSON, each with the id of its request.

Everything that logs through the standard library, ours or uvicorn's, comes out in the same form.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import structlog

ACCESS = "latentkv.server.access"


def configure(*, json: bool, level: str) -> None:
    """Write logs to stderr from now on. level: a name such as "info"."""
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.ExtraAdder(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    if json:
        last: list[Any] = [structlog.processors.dict_tracebacks, structlog.processors.JSONRenderer()]
    else:
        last = [structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())]
    handler = logging.StreamHandler()
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *last],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level.upper())


@contextmanager
def request(request_id: str) -> Iterator[None]:
    """Every line logged inside carries this id."""
    with structlog.contextvars.bound_contextvars(request_id=request_id):
        yield


def access(*, method: str, path: str, status: int, seconds: float) -> None:
    """One line about an answered HTTP request."""
    extra = {"method": method, "path": path, "status": status, "duration_ms": round(seconds * 1e3, 1)}
    logging.getLogger(ACCESS).info("request", extra=extra)
