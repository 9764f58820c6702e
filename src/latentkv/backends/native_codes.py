"""Rows of codes as the native kernels take them: the format's name, and where codes, scales and RoPE part lie."""

from __future__ import annotations

from functools import lru_cache

from latentkv.cache.layout import DTYPE_BYTES, Part, RowLayout, Scales

# How csrc/params.h calls what codes are.
CODE_FORMATS = {"float8_e4m3fn": "fp8", "int8": "int8", "int6": "int6", "int4": "int4"}

# The kernels take groups of whole packing units.
GROUP_UNIT = 64

Codes = tuple[str, int, int, int, int, int]
CodedParts = tuple[tuple[int, Codes], tuple[int, Codes]]


@lru_cache(maxsize=64)
def native_codes(row: RowLayout) -> Codes | None:
    """(format, codes, group, bytes of a scale, offset of the scales, offset of the RoPE part).

    None for rows that are not a latent of codes, in groups of whole packing units, and a RoPE part in bfloat16.
    """
    if not row.coded or row.part_names != ("latent", "rope"):
        return None
    latent, rope = row.part("latent"), row.part("rope")
    if latent.scales is None or latent.scales.group % GROUP_UNIT or rope.scales is not None or rope.dtype != "bfloat16":
        return None
    return _codes(latent, latent.scales, rope.offset_bytes)


@lru_cache(maxsize=64)
def native_parts(row: RowLayout) -> CodedParts | None:
    """Of rows of keys and values in codes, the first byte of each and its codes, whose offsets count from there.

    None for rows that are not keys and values of codes, in groups of whole packing units.
    """
    if not row.coded or row.part_names != ("key", "value"):
        return None
    key, value = (_part(part) for part in row.parts)
    return None if key is None or value is None else (key, value)


def _part(part: Part) -> tuple[int, Codes] | None:
    if part.scales is None or part.scales.group % GROUP_UNIT:
        return None
    return part.offset_bytes, _codes(part, part.scales, part.end_bytes)


def _codes(part: Part, scales: Scales, rope_bytes: int) -> Codes:
    begin = part.offset_bytes
    places = (scales.offset_bytes - begin, rope_bytes - begin)
    return (CODE_FORMATS[part.dtype], part.elements, scales.group, DTYPE_BYTES[scales.dtype], *places)
