"""Numbers as codes that share a scale, and back: the reference for every kernel that reads or writes coded rows.

What a code stands for and the order of its bits is told in cache/layout.py; here is how numbers become codes. A group's
elements x with the largest magnitude `amax`, all arithmetic in float32:

    fp8     x / s to e4m3, to nearest even          s = amax / 448
    int8    x / s to an integer, to nearest even    s = amax / 127
    int6    floor(x / 2s) + 32, at most 63          s = amax / 64 rounded up to bfloat16
    int4    floor(x / 2s) + 8, at most 15           s = amax / 16 rounded up to bfloat16

Divisions are true divisions, not products with a reciprocal, so that a kernel can give the same bytes. No element is
further from what is read back than half a step, which is s/2 for int8, s for int6 and int4, and for fp8 max(|x| / 16,
s / 1024); plus float32's rounding. Knows no rows.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from latentkv.cache.layout import CODE_BYTES, CODE_ELEMENTS, Scales

# amax / LARGEST[dtype] is the scale.
LARGEST = {"float8_e4m3fn": 448.0, "int8": 127.0, "int6": 64.0, "int4": 16.0}
# Below this a scale is 0: smaller float32 numbers are denormal, which some processors are told to take for 0.
LEAST_SCALE = 2.0**-126


def encode(dtype: str, x: Tensor, scales: Scales) -> tuple[Tensor, Tensor]:
    """x [T, n] float32 as code bytes [T, ...] uint8 and scales [T, groups] in their dtype (layout.py says which)."""
    grouped = _grouped(x, scales)
    scale = _scale(dtype, grouped.abs().amax(dim=-1), scales)
    divisor = scale.float()[..., None]
    used = divisor > 0  # False for a scale that is NaN
    quotient = torch.where(used, grouped, 0.0) / torch.where(used, divisor, 1.0)
    codes = torch.where(used, _codes(dtype, quotient), 0).flatten(1)[:, : x.shape[1]]
    return _pack(dtype, codes), scale


def decode(dtype: str, codes: Tensor, scale: Tensor, scales: Scales, *, elements: int) -> Tensor:
    """Numbers [..., elements] float32 from code bytes [..., size] uint8 and scales [..., groups]."""
    numbers = _numbers(dtype, _unpack(dtype, codes)[..., :elements])
    return (_grouped(numbers, scales) * scale.float()[..., None]).flatten(-2)[..., :elements]


def _grouped(x: Tensor, scales: Scales) -> Tensor:
    """x [..., n] as [..., groups, group], the last group filled up with zeros."""
    missing = scales.count * scales.group - x.shape[-1]
    return functional.pad(x, (0, missing)).reshape(*x.shape[:-1], scales.count, scales.group)


def _scale(dtype: str, amax: Tensor, scales: Scales) -> Tensor:
    scale = amax / LARGEST[dtype]
    if scales.dtype == "bfloat16":
        # Up, not to nearest: a scale that is too small leaves the largest element further out than its code reaches.
        scale = ((scale.view(torch.int32) + 0xFFFF) & ~0xFFFF).view(torch.float32)
    scale = torch.where(scale < LEAST_SCALE, 0.0, scale)
    scale = torch.where(amax.isfinite(), scale, torch.nan)
    return scale.bfloat16() if scales.dtype == "bfloat16" else scale


def _codes(dtype: str, quotient: Tensor) -> Tensor:
    """Codes as uint8, one each, of elements divided by their scale."""
    if dtype == "float8_e4m3fn":
        return quotient.to(torch.float8_e4m3fn).view(torch.uint8)
    if dtype == "int8":
        return quotient.round().to(torch.int8).view(torch.uint8)
    half = int(LARGEST[dtype]) // 2
    return ((quotient / 2).floor() + half).clamp(0, 2 * half - 1).to(torch.uint8)


def _numbers(dtype: str, codes: Tensor) -> Tensor:
    """What codes stand for, in units of their scale: float32."""
    if dtype == "float8_e4m3fn":
        return codes.view(torch.float8_e4m3fn).float()
    if dtype == "int8":
        return codes.view(torch.int8).float()
    return codes.float() * 2 - (LARGEST[dtype] - 1)


def _pack(dtype: str, codes: Tensor) -> Tensor:
    """Codes [T, n] as bytes [T, size]."""
    unit = CODE_ELEMENTS[dtype]
    if unit == 1:
        return codes
    count = -(-codes.shape[1] // unit)
    units = functional.pad(codes, (0, count * unit - codes.shape[1])).reshape(len(codes), count, unit)
    low = units & 15
    planes = [(low[..., :32] | low[..., 32:] << 4).flatten(1)]
    if dtype == "int6":
        first, second, third, fourth = torch.split(units >> 4, 16, dim=2)
        planes.append((first | second << 2 | third << 4 | fourth << 6).flatten(1))
    return torch.cat(planes, dim=1)


def _unpack(dtype: str, data: Tensor) -> Tensor:
    """Bytes [..., size] as codes [..., n], n a multiple of the packing unit."""
    unit = CODE_ELEMENTS[dtype]
    if unit == 1:
        return data
    count = data.shape[-1] // CODE_BYTES[dtype]
    low = data[..., : 32 * count].reshape(*data.shape[:-1], count, 32)
    codes = torch.cat([low & 15, low >> 4], dim=-1)
    if dtype == "int6":
        high = data[..., 32 * count :].reshape(*data.shape[:-1], count, 16)
        codes = codes | torch.cat([high >> shift & 3 for shift in (0, 2, 4, 6)], dim=-1) << 4
    return codes.flatten(-2)
