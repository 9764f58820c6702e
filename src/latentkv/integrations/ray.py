"""The server of `latentkv serve` as a Ray Serve application: replicas, prefix-aware routing, autoscaling, retries.

    serve run latentkv.integrations.ray:app model=FOLDER options="--cache-tokens 65536" replicas=2 most_replicas=8

Two deployments: `Replica` runs one engine with its whole server, without a socket of its own; `Door` takes HTTP and
sends each request to the replica that probably has the beginning of its prompt cached. A request whose replica dies is
sent to another one, as long as nothing of its answer has reached the client.
"""

from __future__ import annotations

import asyncio
import json
import logging
import shlex
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from ray import serve
from ray.exceptions import RayActorError
from ray.serve import Application
from ray.serve.config import RequestRouterConfig
from ray.serve.handle import DeploymentHandle
from ray.serve.request_router import PendingRequest, ReplicaID, RequestRouter, RunningReplica
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from latentkv.cli.serve import parts_of
from latentkv.integrations.asgi_call import Asked, Begun, call
from latentkv.integrations.prefix_routing import PrefixTable, prompt_digests
from latentkv.server.app import create_app
from latentkv.server.engine_thread import EngineState
from latentkv.server.run import make_context

logger = logging.getLogger(__name__)
MOST_ATTEMPTS = 4
MOST_AT_ONCE = 512
HEALTH_SECONDS = 5.0
LOAD_SECONDS = 1800
# What belongs to one connection, and is made anew for the next.
HOP_HEADERS = frozenset({b"connection", b"content-length", b"keep-alive", b"transfer-encoding"})


class AppOptions(BaseModel):
    """What `serve run … NAME=VALUE` or a configuration file may say.

    options: as for `latentkv serve`; those about its socket and its logs have no meaning here
    """

    model_config = ConfigDict(extra="forbid")

    model: str | None = None
    options: str = ""
    replicas: int = Field(1, ge=1)
    most_replicas: int | None = Field(None, ge=1, description="More than `replicas`: scale up to here under load.")
    requests_per_replica: float = Field(16, gt=0, description="Running requests that autoscaling aims at.")
    scale_up_after_s: float = Field(30, ge=0, description="How long there must be more than that before one is added.")
    scale_down_after_s: float = Field(600, ge=0, description="How long there must be fewer before one is stopped.")
    cpus: float = Field(1, ge=0, description="Of each replica, for Ray to plan with.")
    imbalance: int = Field(8, ge=0, description="See PrefixTable.")


class PrefixRouter(RequestRouter):  # type: ignore[misc]
    """Prefers the replica that got the longest beginning of a prompt, while it is not much busier than the others."""

    def initialize_state(self, imbalance: int = 8) -> None:
        """Called by Ray with the keywords of RequestRouterConfig."""
        self.table = PrefixTable(imbalance)

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """Ranks of one replica each."""
        replicas = {replica.replica_id.unique_id: replica for replica in candidate_replicas}
        loads = {name: self.replica_queue_len_cache.get(one.replica_id) or 0 for name, one in replicas.items()}
        return [[replicas[name]] for name in self.table.ranked(_chain(pending_request), loads)]

    def on_request_routed(self, pending_request: PendingRequest, replica_id: ReplicaID, result: Any) -> None:  # noqa: ARG002
        """Remember who got it."""
        self.table.sent(_chain(pending_request), replica_id.unique_id)

    def on_replica_actor_died(self, replica_id: ReplicaID) -> None:
        """Forget a replica and what it had."""
        super().on_replica_actor_died(replica_id)
        alive = [one.unique_id for one in self.curr_replicas if one != replica_id]
        self.table.keep(alive)


def _chain(pending: PendingRequest | None) -> tuple[bytes, ...]:
    asked = pending.args[0] if pending is not None and pending.args else None
    return asked.chain if isinstance(asked, Asked) else ()


class Replica:
    """One engine and its server."""

    def __init__(self, model: str | None, options: str) -> None:
        load, settings, guard = parts_of([*([model] if model else []), *shlex.split(options)])
        self._context = make_context(load, settings, guard=guard)
        self._application = create_app(self._context)
        self._started: asyncio.Future[None] | None = None
        self._name = serve.get_replica_context().replica_id.unique_id

    async def answer(self, asked: Asked) -> AsyncIterator[Begun | bytes]:
        """The parts of an answer; the header `x-replica` tells who gave it."""
        await self._serving()
        async with aclosing(call(self._application, asked)) as parts:  # type: ignore[type-var]
            async for part in parts:
                yield self._signed(part) if isinstance(part, Begun) else part

    def _signed(self, begun: Begun) -> Begun:
        return Begun(begun.status, (*begun.headers, (b"x-replica", self._name.encode())))

    async def check_health(self) -> None:
        """Called by Ray: requests come after the first call, and the replica is replaced when one raises."""
        await self._serving()
        if self._context.service.thread.state is EngineState.DEAD:
            raise RuntimeError("the engine has stopped.")

    async def _serving(self) -> None:
        """Load the model, once, in the loop that requests run in."""
        if self._started is None:
            self._started = asyncio.ensure_future(self._start())
        await asyncio.shield(self._started)

    async def _start(self) -> None:
        thread = self._context.service.thread
        settled = asyncio.Event()
        thread.start(asyncio.get_running_loop(), on_change=lambda _: settled.set())
        await asyncio.wait_for(settled.wait(), LOAD_SECONDS)
        if thread.failure is not None:
            raise thread.failure
        self._context.service.max_running = thread.engine.max_running


class Door:
    """Takes HTTP, and answers with what a replica says."""

    def __init__(self, replicas: DeploymentHandle) -> None:
        self._replicas = replicas.options(method_name="answer", stream=True)

    async def __call__(self, request: Request) -> Response:
        """One request, sent again to another replica when its own dies before anything was answered."""
        body = await request.body()
        asked = Asked(
            request.method,
            request.url.path,
            request.url.query.encode(),
            tuple(request.headers.raw),
            body,
            prompt_digests(body) if request.method == "POST" else (),
        )
        for attempt in range(MOST_ATTEMPTS):
            parts = self._replicas.remote(asked)
            try:
                begun = await anext(parts)
                # The status alone may still be taken back: it is sent with the first part of the body.
                first = await anext(parts, b"")
            except RayActorError as error:
                logger.warning("attempt %d: the replica is gone: %s", attempt + 1, type(error).__name__)
                await asyncio.sleep(0.1 * 2**attempt)
                continue
            return _response(begun, first, parts)
        message = "every replica that was asked has died."
        return JSONResponse({"error": {"message": message, "type": "server_error"}}, status_code=503)


def _response(begun: Begun, first: bytes, parts: AsyncIterator[bytes]) -> Response:
    response = StreamingResponse(_rest(first, parts), status_code=begun.status)
    response.raw_headers = [header for header in begun.headers if header[0].lower() not in HOP_HEADERS]
    return response


async def _rest(first: bytes, parts: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The body; a replica that dies in the middle ends an event stream with an error, which cannot be taken back."""
    yield first
    try:
        async for part in parts:
            yield part
    except RayActorError:
        error = {"error": {"message": "the replica died while it answered.", "type": "server_error"}}
        yield b"data: " + json.dumps(error).encode() + b"\n\n"


def app(args: AppOptions) -> Application:
    """The application, for `serve run latentkv.integrations.ray:app NAME=VALUE …` and for `serve.run(app(…))`."""
    router = RequestRouterConfig(
        request_router_class="latentkv.integrations.ray:PrefixRouter",
        request_router_kwargs={"imbalance": args.imbalance},
    )
    replica = serve.deployment(
        name="Replica",
        max_ongoing_requests=MOST_AT_ONCE,
        health_check_period_s=HEALTH_SECONDS,
        request_router_config=router,
        ray_actor_options={"num_cpus": args.cpus},
        **_scaling(args),
    )(Replica)
    door = serve.deployment(name="Door", max_ongoing_requests=MOST_AT_ONCE, ray_actor_options={"num_cpus": 0})(Door)
    return door.bind(replica.bind(args.model, args.options))


def _scaling(args: AppOptions) -> dict[str, Any]:
    """How many replicas there are, as Ray Serve wants to be told."""
    if args.most_replicas is None or args.most_replicas <= args.replicas:
        return {"num_replicas": args.replicas}
    return {
        "num_replicas": "auto",
        "autoscaling_config": {
            "min_replicas": args.replicas,
            "max_replicas": args.most_replicas,
            "target_ongoing_requests": args.requests_per_replica,
            "upscale_delay_s": args.scale_up_after_s,
            "downscale_delay_s": args.scale_down_after_s,
        },
    }
