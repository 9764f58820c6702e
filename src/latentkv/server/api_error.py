"""What a client is told when a request is refused: OpenAI's error object and its HTTP status. Knows no route."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from latentkv.errors import LatentKVError


class APIError(LatentKVError):
    """A refusal: an HTTP status, a sentence, and where it applies the name of the request's field.

    param: the field as the client wrote it, for instance "messages[1].content" · code: a word for programs
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code
        self.headers = dict(headers or {})

    def body(self) -> dict[str, Any]:
        """The JSON of the answer."""
        kind = "server_error" if self.status >= 500 else _KINDS.get(self.status, "invalid_request_error")
        return {"error": {"message": _text(self.message), "type": kind, "param": _text(self.param), "code": self.code}}


_KINDS = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}


def _text(value: str | None) -> str | None:
    """Half of a surrogate pair, which JSON can carry in a name, could not be sent back as UTF-8."""
    return None if value is None else value.encode("utf-8", "replace").decode()


def refused(field: str, reason: str) -> APIError:
    """400 for a field that this server does not obey, or a value of it."""
    return APIError(400, f"{field}: {reason}", param=field, code="unsupported_value")


def draining() -> APIError:
    """503 while the server shuts down."""
    return APIError(503, "the server is shutting down.", code="shutting_down", headers={"Connection": "close"})


def loading() -> APIError:
    """503 while the model is being loaded."""
    return APIError(503, "the model is still being loaded.", code="loading", headers={"Retry-After": "5"})


def engine_dead() -> APIError:
    """503 after the engine ended for good."""
    return APIError(503, "the engine has stopped: the server has to be restarted.", code="engine_dead")


def timed_out(seconds: float) -> APIError:
    """504 for a request that took longer than the server allows."""
    return APIError(504, f"the request was not finished within {seconds:g} s and was cancelled.", code="timeout")
