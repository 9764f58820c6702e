"""Which instruction sets the native extension offers on this CPU, and which one is in use.

Works without the extension: there are then none, and `native_missing` says why. Knows no kernels and no torch.
"""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING

from latentkv import env
from latentkv.errors import OptionError, UnsupportedError, sentence

if TYPE_CHECKING:
    from types import ModuleType

    from latentkv._native import Isa


def _load() -> ModuleType:
    # Asked several times for each layer of a step: the import system takes longer than some kernels.
    return sys.modules.get("latentkv._native") or importlib.import_module("latentkv._native")


def native_missing() -> str:
    """Why the native extension cannot be used, in one sentence; empty when it can."""
    try:
        _load()
    except ImportError as error:
        return f"the extension latentkv._native cannot be loaded ({error}). Reinstall latentkv with a C++ compiler."
    return ""


def available_isas() -> tuple[str, ...]:
    """The instruction sets that were built and that this CPU has, the default first; empty without the extension.

    `avx2w16` and `avx2tile` are for tests: the algorithms of AVX-512 and AMX in AVX2 instructions, never the default.
    """
    return () if native_missing() else tuple(isa.name for isa in _load().isas())


def find_isa(name: str | None = None) -> Isa:
    """The kernels of instruction set `name`; by default what LATENTKV_ISA forces, or else the best this CPU has.

    Raises OptionError for a name that this build or CPU does not have, UnsupportedError without the extension.
    """
    try:
        isas: tuple[Isa, ...] = _load().isas()
    except ImportError:
        raise UnsupportedError(f"native kernels: {native_missing()}") from None
    forced = env.isa()
    wanted = name or forced
    if wanted is None:
        return isas[0]
    for isa in isas:
        if isa.name == wanted:
            return isa
    what = "instruction set" if name else "LATENTKV_ISA"
    raise OptionError(sentence(what, expected=f"one of {', '.join(available_isas())}", got=repr(wanted)))


def active_isa() -> str:
    """The instruction set that native kernels use by default, or "none" without the extension.

    Raises OptionError when LATENTKV_ISA names one that this build or CPU does not have.
    """
    return "none" if native_missing() else find_isa().name


def cpu_flags() -> tuple[str, ...]:
    """The instruction set extensions that CPU and operating system offer; empty without the extension."""
    return () if native_missing() else tuple(_load().cpu_flags())
