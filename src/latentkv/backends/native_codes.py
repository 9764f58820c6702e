"""Rows of codes as the native kernels take them: the format's name, and where codes, scales and RoPE part lie."""

from __future__ import annotations

from functools import lru_cache

from latentkv.cache.layout import DTYPE_BYTES, RowLayout

# How csrc/params.h calls what codes are.
CODE_FORMATS = {"float8_e4m3fn": "fp8", "int8": "int8", "int6": "int6", "int4": "int4"}

# The kernels take groups of whole packing units.
GROUP_UNIT = 64

Codes = tuple[str, int, int, int, int, int]


@lru_cache(maxsize=64)
def native_codes(row: RowLayout) -> Codes | None:
    """(format, codes, group, bytes of a scale, offset of the scales, offset of the RoPE part).

    None for rows that are not a latent of codes, in groups of whole packing units, and a RoPE part in bfloat16.
    """
    if not row.coded or row.part_names != ("latent", "rope"):
        return None
    latent, rope = row.part("latent"), row.part("rope")
    scales = latent.scales
    if scales is None or scales.group % GROUP_UNIT or rope.scales is not None or rope.dtype != "bfloat16":
        return None
    places = (scales.offset_bytes, rope.offset_bytes)
    return (CODE_FORMATS[latent.dtype], latent.elements, scales.group, DTYPE_BYTES[scales.dtype], *places)
