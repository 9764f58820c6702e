"""Sizes as people write them, and as they are told: always with a unit, GB (10^9 bytes) never mistaken for GiB (2^30).

Knows nothing of models.
"""

from __future__ import annotations

import re

from latentkv.errors import OptionError, sentence

KIB, MIB, GIB, TIB = 1 << 10, 1 << 20, 1 << 30, 1 << 40
KB, MB, GB, TB = 10**3, 10**6, 10**9, 10**12

BYTE_UNITS = {
    "b": 1,
    "kb": KB,
    "mb": MB,
    "gb": GB,
    "tb": TB,
    "kib": KIB,
    "mib": MIB,
    "gib": GIB,
    "tib": TIB,
}
# Contexts are spoken of in powers of two: "32k" is 32,768 tokens.
COUNT_UNITS = {"": 1, "k": KIB, "m": MIB}
_SIZE = re.compile(r"\s*([0-9][0-9,_]*(?:\.[0-9]+)?)\s*([A-Za-z]*)\s*")


def parse_bytes(text: str, *, name: str = "memory") -> int:
    """Bytes in a size such as "80GiB", "80 GB" or "1.5TiB". A bare number is refused: its unit would be a guess.

    Raises OptionError naming `name`, for an unknown or missing unit and for anything that is not above zero.
    """
    number, unit = _split(text, name, expected="a size such as 80GiB or 80GB")
    if unit.lower() not in BYTE_UNITS:
        expected = "a size in B, KB, MB, GB, TB (powers of 1000) or KiB, MiB, GiB, TiB (powers of 1024)"
        raise OptionError(sentence(name, expected=expected, got=repr(text), remedy=_meant(number, unit)))
    return _whole(number, BYTE_UNITS[unit.lower()], text, name, "a size above zero")


def parse_tokens(text: str, *, name: str = "context") -> int:
    """Tokens in "32768", "32,768" or "32k" (32,768: k is 1,024 and M is 1,048,576, as contexts are named).

    Raises OptionError naming `name` for anything else, and for zero.
    """
    number, unit = _split(text, name, expected="a number of tokens such as 32768 or 32k")
    if unit.lower() not in COUNT_UNITS:
        expected = "a number of tokens, plain or with k (1,024) or M (1,048,576)"
        raise OptionError(sentence(name, expected=expected, got=repr(text)))
    return _whole(number, COUNT_UNITS[unit.lower()], text, name, "at least one token")


def in_gb_and_gib(size_bytes: int) -> str:
    """ "12.75 GB (11.88 GiB)"; smaller sizes in MB and MiB, or KB and KiB, and below 1 KB in bytes."""
    for decimal, binary, prefix in ((GB, GIB, "G"), (MB, MIB, "M"), (KB, KIB, "K")):
        if size_bytes >= decimal:
            return f"{short(size_bytes / decimal)} {prefix}B ({short(size_bytes / binary)} {prefix}iB)"
    return f"{size_bytes:,} B"


def short(value: float) -> str:
    """A number with about four figures: 1,234 · 123.4 · 12.34 · 0.123."""
    if value >= 1000:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 100 else f"{value:.2f}" if value >= 1 else f"{value:.3f}"


def _split(text: str, name: str, *, expected: str) -> tuple[str, str]:
    match = _SIZE.fullmatch(text)
    if match is None:
        raise OptionError(sentence(name, expected=expected, got=repr(text)))
    return match[1].replace(",", "").replace("_", ""), match[2]


def _whole(number: str, unit: int, text: str, name: str, expected: str) -> int:
    size = round(float(number) * unit) if "." in number else int(number) * unit
    if size < 1:
        raise OptionError(sentence(name, expected=expected, got=repr(text)))
    return size


def _meant(number: str, unit: str) -> str:
    letter = unit[:1].upper() if unit[:1].upper() in ("K", "M", "G", "T") else "G"
    return f"Did you mean {number}{letter}iB or {number}{letter}B?"
