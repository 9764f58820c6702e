"""A dumped call computed once more, and how the result compares with those in the file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from latentkv.backends.agreement import Agreement, compare
from latentkv.backends.base import Backend
from latentkv.backends.dumps import Dump
from latentkv.backends.registry import find_backend
from latentkv.errors import UnsupportedError


@dataclass(frozen=True, slots=True)
class Rerun:
    """What one backend made of a dumped call.

    used, shadow: against the result that was used, and against the shadow's
    problem:      what it raised instead; both agreements are then None
    """

    backend: str
    path: str
    used: Agreement | None
    shadow: Agreement | None
    problem: str = ""

    @property
    def ok(self) -> bool:
        """Whether it agrees with the shadow's result."""
        return self.shadow is not None and self.shadow.ok


def rerun(dump: Dump, name: str, *, plugins: Sequence[Backend] = ()) -> Rerun:
    """Compute the call on the backend called `name`.

    Raises OptionError for an unknown backend and UnsupportedError for one that cannot run the call here. What the
    backend itself raises becomes `problem`: it may be what the dump is about.
    """
    backend = find_backend(name, plugins=plugins)
    support = backend.supports(dump.call.request)
    if not support.ok:
        raise UnsupportedError(f"{name} cannot run this call: {support.reason}")
    try:
        result = dump.call.run(backend)
    except Exception as error:
        return Rerun(name, "", None, None, f"{type(error).__name__}: {error}")
    rows = dump.call.request.format
    used, shadow = (compare(result, recorded, format=rows) for _, recorded in dump.results)
    return Rerun(name, result.path, used, shadow)
