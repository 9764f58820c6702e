"""From pydantic's list of complaints to one sentence that names the field as the client wrote it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from latentkv.server.api_error import APIError

# Steps of a location that are pydantic's and not the client's: names of types that were tried in a union.
_TYPES = re.compile(r"str|int|float|bool|constrained-str|.*[\[(].*|[A-Z]\w*|literal.*|function-.*")
_TAGS = {("response_format", tag) for tag in ("text", "json_object", "json_schema")}


def api_error(errors: Sequence[Mapping[str, Any]]) -> APIError:
    """400 about the first complaint; 413 and the like are told elsewhere."""
    if not errors:
        return APIError(400, "the request is not valid.")
    error = _most_telling(errors)
    kind, location = str(error["type"]), tuple(error["loc"])[1:]
    if kind == "json_invalid":
        reason = error.get("ctx", {}).get("error", "it cannot be read")
        return APIError(400, f"the body is not JSON: {reason}.", code="invalid_json")
    if kind == "refused_field":
        name = str(error["ctx"]["field"])
        field = field_name((*location, name))
        return APIError(400, f"{field}: {error['msg']}", param=field, code="unsupported_parameter")
    field = field_name(location, keep_last=kind == "extra_forbidden")
    if kind == "extra_forbidden":
        return APIError(400, f"{field}: there is no such field.", param=field, code="unknown_parameter")
    if kind == "missing":
        return APIError(400, f"{field or 'body'}: it is required.", param=field or None, code="missing_parameter")
    return APIError(400, f"{field or 'body'}: {error['msg']}.", param=field or None, code="invalid_value")


def field_name(location: Sequence[str | int], *, keep_last: bool = False) -> str:
    """A location as a client writes it: messages[0].content"""
    name = ""
    for place, step in enumerate(location):
        last = place == len(location) - 1
        if place and (location[place - 1], step) in _TAGS:
            continue
        if isinstance(step, int):
            name += f"[{step}]"
        elif (last and keep_last) or place == 0 or not _TYPES.fullmatch(step):
            name += f".{step}" if name else step
    return name


def _most_telling(errors: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """Of a union's complaints the one that got deepest; else the first."""
    first = errors[0]
    rivals = [error for error in errors if tuple(error["loc"])[:2] == tuple(first["loc"])[:2]]
    return max(rivals, key=lambda error: len(error["loc"]))
