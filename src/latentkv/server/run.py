"""One server from start to end: listens at once, loads in the engine's thread, serves, drains, ends.

The first SIGTERM or SIGINT begins the shutdown: /ready says no, new requests get 503, running ones finish or are ended
after the shutdown timeout. The second one ends the process at once.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from types import FrameType

import uvicorn

from latentkv.backends.guard import Guard
from latentkv.engine.engine import Engine
from latentkv.server import tracing
from latentkv.server.app import create_app
from latentkv.server.backend_metrics import BackendCollector, kernel_fallbacks
from latentkv.server.context import Context
from latentkv.server.engine_thread import EngineState, EngineThread, Observer
from latentkv.server.metrics import Metrics
from latentkv.server.options import ServerOptions
from latentkv.server.recent import Recent
from latentkv.server.service import Service

logger = logging.getLogger(__name__)
ENGINE_STOP_S = 10.0


class Server(uvicorn.Server):
    """Uvicorn with our way to end."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._signals = 0
        self._draining: asyncio.Task[None] | None = None
        config = uvicorn.Config(
            create_app(context),
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=2,
            lifespan="off",
        )
        super().__init__(config)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002 (uvicorn's signature)
        """Begin to drain; end at once when asked again."""
        self._signals += 1
        if self._signals > 1:
            # Neither Python's exit handlers nor the engine's thread may hold up the end that was asked for twice.
            os._exit(128 + sig)
        logger.info("shutting down: %d choices are running or waiting", self._context.service.live_choices)
        self._context.service.draining = True
        self._loop.call_soon_threadsafe(self._begin_to_drain)

    async def serve_until_told(self, listening: socket.socket, *, announce: Callable[[], None]) -> None:
        """Serve on a bound socket until a signal or a failed load. Raises what loading raised."""
        self._loop = asyncio.get_running_loop()
        thread = self._context.service.thread

        def changed(state: EngineState) -> None:
            if state is EngineState.SERVING:
                self._loaded()
                announce()
            elif state is EngineState.DEAD and thread.stats is None:
                self.should_exit = True

        thread.start(self._loop, on_change=changed)
        await self.serve([listening])
        thread.stop()
        if not await asyncio.to_thread(thread.join, ENGINE_STOP_S):
            logger.warning("the engine is still in a step after %g s; it is left behind", ENGINE_STOP_S)
        if thread.failure is not None:
            raise thread.failure

    def _loaded(self) -> None:
        context, engine = self._context, self._context.service.thread.engine
        context.service.max_running = engine.max_running
        context.metrics.describe_model(
            model=context.options.model_names[0],
            format=engine.cache_format,
            geometry=engine.model.geometry.kind,
        )

    def _begin_to_drain(self) -> None:
        self._draining = self._loop.create_task(self._drain())

    async def _drain(self) -> None:
        await self._context.service.drain()
        self.should_exit = True


def make_context(
    load: Callable[[], Engine],
    options: ServerOptions,
    *,
    guard: Guard | None = None,
    observers: Sequence[Observer] = (),
) -> Context:
    """The parts of a server whose engine `load` will make.

    guard: the one of that engine's model · observers: also told what the engine does, in its thread
    """
    metrics, recent = Metrics(), Recent()
    if guard is not None:
        metrics.registry.register(BackendCollector(guard))
    thread = EngineThread(load, (metrics, recent, *observers))
    metrics.watch_engine(lambda: thread.stats)
    metrics.add_source(kernel_fallbacks(lambda: thread.engine.model if thread.stats is not None else None))
    return Context(options, Service(thread, options), metrics, recent, guard)


def listen(host: str, port: int) -> socket.socket:
    """A socket bound to an address; port 0 takes a free one. Raises OSError with the address in its message."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with ExitStack() as cleanup:
            listening = cleanup.enter_context(socket.socket(family, kind, protocol))
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind(address)
            cleanup.pop_all()
    except OSError as error:
        raise OSError(f"{host}:{port}: the server cannot listen there: {error.strerror or error}.") from None
    return listening


def run(
    load: Callable[[], Engine],
    options: ServerOptions,
    listening: socket.socket,
    *,
    announce: Callable[[], None],
    guard: Guard | None = None,
) -> None:
    """Serve until told to end. announce: called when requests are taken. Raises what loading raised."""
    traced = tracing.from_environment(model=options.model_names[0])
    context = make_context(load, options, guard=guard, observers=(traced,) if traced is not None else ())
    server = Server(context)
    asyncio.run(server.serve_until_told(listening, announce=announce))
