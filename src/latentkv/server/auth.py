"""Who may ask: bearer keys, compared in constant time. Knows which paths need which keys."""

from __future__ import annotations

import hmac
from collections.abc import Sequence

from latentkv.server.api_error import APIError

OPEN_PATHS = ("/health", "/ready", "/metrics", "/docs", "/openapi.json", "/status", "/ui")
ADMIN_PATH = "/admin"


def check_key(path: str, authorization: str | None, *, api_keys: Sequence[str], admin_keys: Sequence[str]) -> str:
    """Which key was given, as a word that does not tell the key; "" where none is asked for.

    Raises APIError 401 without the right key for `path`, 403 for /admin where no admin key is set.
    """
    if _under(path, ADMIN_PATH):
        if not admin_keys:
            raise APIError(403, "this server was started without --admin-key.", code="admin_disabled")
        return _known(authorization, admin_keys)
    if api_keys and not any(_under(path, open_path) for open_path in OPEN_PATHS):
        return _known(authorization, (*api_keys, *admin_keys))
    return ""


def _under(path: str, parent: str) -> bool:
    return path == parent or path.startswith(f"{parent}/")


def _known(authorization: str | None, keys: Sequence[str]) -> str:
    scheme, _, given = (authorization or "").partition(" ")
    offered = given.strip().encode() if scheme.lower() == "bearer" else b""
    # Every key is compared: how long this takes does not tell which one was nearly right.
    matches = [hmac.compare_digest(offered, key.encode()) for key in keys]
    if not any(matches):
        message = "a key is needed: Authorization: Bearer KEY." if not offered else "this key is not known here."
        raise APIError(401, message, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})
    return f"key-{matches.index(True)}"
