"""/ui: the status page and chat, as plain files of this package. Knows nothing of what they show."""

from __future__ import annotations

from importlib.resources import files

from fastapi import APIRouter
from starlette.responses import RedirectResponse, Response

from latentkv.server.api_error import APIError

router = APIRouter(prefix="/ui", include_in_schema=False)
TYPES = {"html": "text/html", "css": "text/css", "js": "text/javascript"}
NAMES = ("index.html", "style.css", "main.js", "chat.js", "status.js", "plot.js")
# Nothing but this server's own files and answers; styles of single elements are set by scripts.
POLICY = "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; frame-ancestors 'none'"


@router.get("", response_model=None)
async def ui() -> Response:
    """To the folder, so that the page's relative addresses work behind any prefix."""
    return RedirectResponse("ui/")


@router.get("/{name:path}", response_model=None)
async def file(name: str) -> Response:
    """One file of the page. Raises APIError 404 for any other."""
    name = name or "index.html"
    if name not in NAMES:
        raise APIError(404, f"/ui has no {name}.")
    content = (files("latentkv.server") / "ui" / name).read_bytes()
    headers = {"Cache-Control": "no-cache", "Content-Security-Policy": POLICY, "X-Content-Type-Options": "nosniff"}
    return Response(content, media_type=TYPES[name.rpartition(".")[2]], headers=headers)
