"""GGUF's quantised blocks taken apart into codes, scales and minima, exactly; ops/quantized.py packs them again.

Layouts are those of ggml's block structures. 5-bit and 6-bit codes become int8. Scales that a file stores in two steps
(the K types) are multiplied out in float32, which holds their products exactly.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from gguf.constants import GGML_QUANT_SIZES
from gguf.constants import GGMLQuantizationType as Kind
from torch import Tensor

from latentkv.ops.quantized import INT4_ZERO, GroupedFormat


@dataclass(frozen=True)
class Codes:
    """Plain rows: codes [rows, in], scales and minima [rows, in / group]."""

    codes: Tensor
    scales: Tensor
    minima: Tensor | None = None


@dataclass(frozen=True)
class Layout:
    """How one kind of block becomes codes: the format they take, its zero point, and the function."""

    format: GroupedFormat
    split: Callable[[Tensor], Codes]
    zero: int = 0


def _half(blocks: Tensor, at: int) -> Tensor:
    """The float16 at byte `at` of every block: [..., 1]."""
    return blocks[..., at : at + 2].contiguous().view(torch.float16)


def _nibbles(packed: Tensor, width: int) -> Tensor:
    """Runs of `width` bytes, each giving its low halves and then its high halves."""
    runs = packed.reshape(*packed.shape[:-1], packed.shape[-1] // width, width)
    return torch.stack([runs & 15, runs >> 4], dim=-2).flatten(-3)


def _bits(packed: Tensor) -> Tensor:
    """Every bit as a byte, lowest first."""
    shifts = torch.arange(8, dtype=torch.uint8, device=packed.device)
    return (packed[..., None] >> shifts & 1).flatten(-2)


def _joined(codes: Tensor, scales: Tensor, minima: Tensor | None = None) -> Codes:
    """From [rows, blocks, n] to [rows, blocks * n]."""
    return Codes(codes.flatten(1), scales.flatten(1), None if minima is None else minima.flatten(1))


def _q8_0(blocks: Tensor) -> Codes:
    return _joined(blocks[..., 2:].contiguous().view(torch.int8), _half(blocks, 0))


def _q4_0(blocks: Tensor) -> Codes:
    return _joined(_nibbles(blocks[..., 2:], 16), _half(blocks, 0))


def _q4_1(blocks: Tensor) -> Codes:
    return _joined(_nibbles(blocks[..., 4:], 16), _half(blocks, 0), _half(blocks, 2))


def _five(blocks: Tensor, at: int) -> Tensor:
    """Codes of 0 to 31: 4 bytes of fifth bits at byte `at`, then 16 of low halves."""
    return (_nibbles(blocks[..., at + 4 :], 16) | _bits(blocks[..., at : at + 4]) << 4).to(torch.int8)


def _q5_0(blocks: Tensor) -> Codes:
    return _joined(_five(blocks, 2) - 16, _half(blocks, 0))


def _q5_1(blocks: Tensor) -> Codes:
    return _joined(_five(blocks, 4), _half(blocks, 0), _half(blocks, 2))


def _k_scales(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """Scale and minimum of the 8 groups of a block of 256: two float16 and 12 bytes of 6-bit factors for each."""
    low, middle, high = blocks[..., 4:8], blocks[..., 8:12], blocks[..., 12:16]
    factors = torch.cat([low & 63, high & 15 | low >> 2 & 48], dim=-1)
    offsets = torch.cat([middle & 63, high >> 4 | middle >> 2 & 48], dim=-1)
    return _half(blocks, 0).float() * factors.float(), -(_half(blocks, 2).float() * offsets.float())


def _q4_k(blocks: Tensor) -> Codes:
    return _joined(_nibbles(blocks[..., 16:], 32), *_k_scales(blocks))


def _q5_k(blocks: Tensor) -> Codes:
    # Bit g of byte i is the fifth bit of element i of group g.
    shifts = torch.arange(8, dtype=torch.uint8, device=blocks.device)[:, None]
    fifth = (blocks[..., 16:48].unsqueeze(-2) >> shifts & 1).flatten(-2)
    return _joined((_nibbles(blocks[..., 48:], 32) | fifth << 4).to(torch.int8), *_k_scales(blocks))


def _q6_k(blocks: Tensor) -> Codes:
    low = _nibbles(blocks[..., :128], 64)
    shifts = torch.tensor([0, 2, 4, 6], dtype=torch.uint8, device=blocks.device)[:, None]
    halves = blocks[..., 128:192].reshape(*blocks.shape[:-1], 2, 1, 32)
    high = (halves >> shifts & 3).flatten(-3)
    scales = _half(blocks, 208).float() * blocks[..., 192:208].contiguous().view(torch.int8).float()
    return _joined((low | high << 4).to(torch.int8) - 32, scales)


LAYOUTS: dict[Kind, Layout] = {
    Kind.Q8_0: Layout("int8", _q8_0),
    Kind.Q4_0: Layout("int4", _q4_0, zero=INT4_ZERO),
    Kind.Q4_1: Layout("int4", _q4_1),
    Kind.Q5_0: Layout("int8", _q5_0),
    Kind.Q5_1: Layout("int8", _q5_1),
    Kind.Q4_K: Layout("int4", _q4_k),
    Kind.Q5_K: Layout("int8", _q5_k),
    Kind.Q6_K: Layout("int8", _q6_k),
}


def packed_block_bytes(kind: Kind) -> int:
    """Memory that one block of a LAYOUTS kind takes when it is packed: half a byte or a byte a code, and its values."""
    layout = LAYOUTS[kind]
    parts = layout.split(torch.zeros(1, 1, GGML_QUANT_SIZES[kind][1], dtype=torch.uint8))
    values_bytes = sum(values.nbytes for values in (parts.scales, parts.minima) if values is not None)
    return parts.codes.numel() // (2 if layout.format == "int4" else 1) + values_bytes
