"""Which backend computes a call: the ordered list, the choice, and why the others were not chosen."""

from __future__ import annotations

from dataclasses import dataclass

from latentkv.backends.base import Backend, Plan, Request
from latentkv.backends.native import NativeBackend
from latentkv.backends.portable import PortableBackend
from latentkv.errors import OptionError, UnsupportedError, sentence

# In order of preference: `auto` takes the first that can.
BACKENDS: tuple[Backend, ...] = (NativeBackend(), PortableBackend())


@dataclass(frozen=True)
class Selection:
    """The chosen backend, and (name, reason) of those preferred to it that cannot run the request."""

    backend: Backend
    rejected: tuple[tuple[str, str], ...]


def select(request: Request, *, name: str = "auto") -> Selection:
    """The backend called `name`, or for "auto" the first that supports the request.

    Raises OptionError for an unknown name and UnsupportedError, with every reason, when none (or not the named one)
    can run the request.
    """
    known = [backend.name for backend in BACKENDS]
    if name != "auto" and name not in known:
        raise OptionError(sentence("backend", expected=f"auto or one of {', '.join(known)}", got=repr(name)))
    rejected: list[tuple[str, str]] = []
    for backend in BACKENDS:
        if name not in ("auto", backend.name):
            continue
        support = backend.supports(request)
        if support.ok:
            return Selection(backend, tuple(rejected))
        rejected.append((backend.name, support.reason))
    raise UnsupportedError("no backend can run this: " + "; ".join(f"{who}: {why}" for who, why in rejected))


def planned_by(plan: Plan) -> Backend:
    """The backend that made a plan. Raises OptionError when there is none of its name."""
    for backend in BACKENDS:
        if backend.name == plan.backend:
            return backend
    raise OptionError(sentence("plan", expected="one of a backend that is here", got=repr(plan.backend)))
