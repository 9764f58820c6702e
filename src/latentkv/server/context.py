"""What every route may use, made once for a server and found through the request. The place of no logic."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Annotated, cast

from fastapi import Depends, Request

from latentkv.backends.guard import Guard
from latentkv.server.metrics import Metrics
from latentkv.server.options import ServerOptions
from latentkv.server.recent import Recent
from latentkv.server.service import Service


@dataclass(frozen=True)
class Context:
    """The parts of one server; `started` is when it was made, in seconds since 1970.

    guard: of the model's backends, where it has one
    """

    options: ServerOptions
    service: Service
    metrics: Metrics
    recent: Recent
    guard: Guard | None = None
    started: int = field(default_factory=lambda: int(time.time()))


def of_request(request: Request) -> Context:
    """The context of the server that got this request."""
    return cast("Context", request.app.state.context)


Ctx = Annotated[Context, Depends(of_request)]
