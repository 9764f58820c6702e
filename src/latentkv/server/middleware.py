"""Around every request: an id, a key check, a bounded body, a line in the log and a count. Plain ASGI.

The body is read here as a whole, so that its length is known before anything is parsed.
"""

from __future__ import annotations

import asyncio
import re
import time
import uuid
from collections.abc import Iterable

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from latentkv.server import auth, logs
from latentkv.server.api_error import APIError
from latentkv.server.metrics import Metrics
from latentkv.server.options import ServerOptions
from latentkv.server.sse import ClientGone

REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
BODY_TIMEOUT_S = 60.0
QUIET_PATHS = ("/health", "/ready", "/metrics", "/status")


class RequestMiddleware:
    """The outermost layer of the application."""

    def __init__(self, app: ASGIApp, *, options: ServerOptions, metrics: Metrics) -> None:
        self._app = app
        self._options = options
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection event."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        request_id = request_id_of(headers.get("x-request-id"))
        scope.setdefault("state", {})["request_id"] = request_id
        answer = _Answer(send, request_id)
        with logs.request(request_id):
            begin = time.perf_counter()
            try:
                await self._handle(scope, headers, receive, answer)
            except ClientGone:
                answer.status = answer.status or 499
            finally:
                self._report(scope, answer.status, time.perf_counter() - begin)

    async def _handle(self, scope: Scope, headers: Headers, receive: Receive, answer: _Answer) -> None:
        try:
            scope["state"]["api_key"] = auth.check_key(
                scope["path"],
                headers.get("authorization"),
                api_keys=self._options.api_keys,
                admin_keys=self._options.admin_keys,
            )
            body = await self._body(headers, receive)
        except APIError as error:
            await error_response(error)(scope, receive, answer.send)
            return
        await self._app(scope, _Replay(body, receive).receive, answer.send)

    async def _body(self, headers: Headers, receive: Receive) -> bytes:
        limit = self._options.max_body_bytes
        length = headers.get("content-length", "0")
        if length.isdecimal() and int(length) > limit:
            raise _too_long(limit)
        chunks = bytearray()
        try:
            async with asyncio.timeout(BODY_TIMEOUT_S):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise ClientGone
                    chunks += message.get("body", b"")
                    if len(chunks) > limit:
                        raise _too_long(limit)
                    if not message.get("more_body", False):
                        return bytes(chunks)
        except TimeoutError:
            raise APIError(408, f"the body did not arrive within {BODY_TIMEOUT_S:g} s.", code="timeout") from None

    def _report(self, scope: Scope, status: int, seconds: float) -> None:
        route = scope.get("route")
        path = getattr(route, "path", None) or "other"
        self._metrics.answered(path, status)
        if path not in QUIET_PATHS:
            logs.access(method=scope["method"], path=scope["path"], status=status, seconds=seconds)


class _Answer:
    """Adds the request's id to the answer and remembers its status."""

    def __init__(self, send: Send, request_id: str) -> None:
        self._send = send
        self._request_id = request_id
        self.status = 0

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers: Iterable[tuple[bytes, bytes]] = message.get("headers", ())
            message = {**message, "headers": [*headers, (b"x-request-id", self._request_id.encode())]}
        await self._send(message)


class _Replay:
    """A body that was read already, then whatever follows on the connection."""

    def __init__(self, body: bytes, receive: Receive) -> None:
        self._body: bytes | None = body
        self._receive = receive

    async def receive(self) -> Message:
        if self._body is None:
            return await self._receive()
        body, self._body = self._body, None
        return {"type": "http.request", "body": body, "more_body": False}


def request_id_of(given: str | None) -> str:
    """The client's own id where it is a plain word, else a new one."""
    return given if given is not None and REQUEST_ID.fullmatch(given) else uuid.uuid4().hex


def error_response(error: APIError) -> JSONResponse:
    """An error as an HTTP answer."""
    return JSONResponse(error.body(), status_code=error.status, headers=error.headers)


def _too_long(limit: int) -> APIError:
    message = f"the body is longer than {limit} bytes."
    return APIError(413, message, code="body_too_long", headers={"Connection": "close"})
