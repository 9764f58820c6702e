"""Which backend computes a call: the ordered list, the choice, and why the others were not chosen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module

from latentkv.backends.base import Backend, Plan, Request
from latentkv.backends.isa import find_isa
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


def known_backends(plugins: Sequence[Backend] = ()) -> tuple[Backend, ...]:
    """Every backend in order of preference: plug-ins, which somebody asked for, then those that are built in."""
    return (*plugins, *BACKENDS)


def find_backend(name: str, *, plugins: Sequence[Backend] = ()) -> Backend:
    """The backend of this name, or the native one on a given instruction set: "native:avx2".

    Raises OptionError for an unknown name or instruction set, UnsupportedError for the latter without the extension.
    """
    known = known_backends(plugins)
    for backend in known:
        if backend.name == name:
            return backend
    kind, colon, isa = name.partition(":")
    if kind == "native" and colon:
        return NativeBackend(isa=find_isa(isa).name)
    names = ", ".join(["native:ISA", *(backend.name for backend in known)])
    raise OptionError(sentence("backend", expected=f"auto or one of {names}", got=repr(name)))


def select(request: Request, *, name: str = "auto") -> Selection:
    """The backend called `name`, or for "auto" the first that supports the request.

    Raises OptionError for an unknown name and UnsupportedError, with every reason, when none (or not the named one)
    can run the request.
    """
    candidates = BACKENDS if name == "auto" else (find_backend(name),)
    rejected: list[tuple[str, str]] = []
    for backend in candidates:
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


def load_plugin(spec: str) -> Backend:
    """The backend that `module:factory` makes when it is called without arguments.

    Code of the operator's own: it is imported and trusted. Raises OptionError when it cannot be imported or does not
    make a backend.
    """
    module, colon, factory = spec.partition(":")
    if not (module and colon and factory):
        raise OptionError(sentence("backend plug-in", expected="module:factory", got=repr(spec)))
    try:
        made = getattr(import_module(module), factory)()
    except Exception as error:
        got = f"{type(error).__name__}: {error}"
        raise OptionError(sentence(f"backend plug-in {spec}", expected="a factory that works", got=got)) from error
    missing = [name for name in ("name", "supports", "plan", "run") if not hasattr(made, name)]
    if missing:
        got = f"{type(made).__name__} without {', '.join(missing)}"
        raise OptionError(sentence(f"backend plug-in {spec}", expected="a backend (backends/base.py)", got=got))
    backend: Backend = made
    return backend
