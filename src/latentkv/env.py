"""The environment variables latentkv reads, all of them, in one table (docs/environment.md is made from it).

Values are read when they are needed, never at import, and a value that cannot be used is an error rather than a
silent default.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Variable:
    """One environment variable: its name, what it takes, and what it does."""

    name: str
    takes: str
    meaning: str


VARIABLES = (
    Variable(
        "LATENTKV_ISA",
        "baseline | avx2 | avx512 | avx512vnni | amx | neondot",
        "Force this instruction set for the native kernels; a name that this build or CPU does not have is an error.",
    ),
    Variable(
        "LATENTKV_HOME",
        "a folder",
        "Where latentkv keeps the user's own data, such as models added to the catalogue; "
        "by default `latentkv` in XDG_DATA_HOME, else in `~/.local/share`.",
    ),
    Variable(
        "LATENTKV_API_KEY",
        "a key, or several with commas between them",
        "Keys that `latentkv serve` asks its clients for, besides those of --api-key.",
    ),
    Variable(
        "LATENTKV_ADMIN_KEY",
        "a key, or several with commas between them",
        "Keys that open the server's /admin, besides those of --admin-key.",
    ),
)


def isa() -> str | None:
    """The forced instruction set, or None for the best one the CPU has."""
    return os.environ.get("LATENTKV_ISA") or None


def api_keys() -> tuple[str, ...]:
    """Keys that a server asks its clients for."""
    return _words("LATENTKV_API_KEY")


def admin_keys() -> tuple[str, ...]:
    """Keys that open a server's /admin."""
    return _words("LATENTKV_ADMIN_KEY")


def _words(name: str) -> tuple[str, ...]:
    return tuple(word for part in os.environ.get(name, "").split(",") if (word := part.strip()))


def home() -> Path:
    """The folder of the user's own data; it may not exist yet."""
    named = os.environ.get("LATENTKV_HOME")
    if named:
        return Path(named).expanduser()
    data = os.environ.get("XDG_DATA_HOME")
    return (Path(data) if data else Path.home() / ".local" / "share") / "latentkv"
