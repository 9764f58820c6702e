"""What an operator sends to /admin."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from latentkv.server.protocol.body import Body


class BackendBody(Body):
    """Prefer an attention backend ("auto": the usual order), or switch one off or on again."""

    backend: str = Field(min_length=1, max_length=100)
    action: Literal["switch", "disable", "enable"] = "switch"
