"""The application: routes, what surrounds them, and how errors are told. Starts nothing and loads nothing."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

import latentkv
from latentkv.server.api_error import APIError
from latentkv.server.context import Context
from latentkv.server.middleware import RequestMiddleware, error_response
from latentkv.server.routes import admin, completions, models, operations, status, tokens, ui
from latentkv.server.validation import api_error

logger = logging.getLogger(__name__)


def create_app(context: Context) -> FastAPI:
    """The ASGI application of one server."""
    app = FastAPI(title="latentkv", version=latentkv.__version__, redoc_url=None)
    app.state.context = context
    for routes in (completions, models, tokens, operations, status, admin, ui):
        app.include_router(routes.router)
    app.add_exception_handler(APIError, _refused)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(Exception, _unexpected)
    app.add_middleware(RequestMiddleware, options=context.options, metrics=context.metrics)
    return app


async def _refused(_: Request, error: Exception) -> Response:
    assert_error = error if isinstance(error, APIError) else APIError(500, "internal error.")
    return error_response(assert_error)


async def _invalid(_: Request, error: Exception) -> Response:
    errors: Sequence[Any] = error.errors() if isinstance(error, RequestValidationError) else ()
    return error_response(api_error(errors))


async def _http_error(request: Request, error: Exception) -> Response:
    if not isinstance(error, HTTPException):
        return await _unexpected(request, error)
    message = f"{request.method} {request.url.path}: {str(error.detail).lower()}."
    return error_response(APIError(error.status_code, message, headers=error.headers))


async def _unexpected(_: Request, error: Exception) -> Response:
    logger.error("a request met a defect", exc_info=error)
    return error_response(APIError(500, "internal error; the server's log has it under this request's id."))
