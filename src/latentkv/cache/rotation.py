"""The orthogonal rotation that `rotated` cache formats apply to latents before they become codes.

A group of codes shares one scale, so one outlier makes the codes of all its neighbours coarse. Multiplied by an
orthogonal matrix Q of entries of equal size, an outlier is spread over all elements and the rest of them adds up to
nearly normal numbers (as QuaRot does to activations, arXiv:2404.00456). The latent c is stored as Q c. Since Q is
orthogonal, q_latent · c = Q q_latent · Q c and o_latent = Qᵀ (Q o_latent): W_UK and W_UV are multiplied by Q once, when
a model is prepared (`UpProjection.rotated`), only the writer does more, and reading costs nothing.

Q is block-diagonal; its blocks are Walsh-Hadamard matrices in natural (Sylvester) order divided by the square root of
their size, which are their own transposes and inverses. Block sizes are the powers of two that make up the width,
largest first: 512 is one block, 192 is 128 + 64. Every width works; a remainder of 1 stays as it is.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor


def rotation_blocks(width: int) -> Iterator[tuple[int, int]]:
    """(start, size) of each block of Q for vectors of this width."""
    start = 0
    for bit in reversed(range(width.bit_length())):
        if width >> bit & 1:
            yield start, 1 << bit
            start += 1 << bit


def rotate(x: Tensor) -> Tensor:
    """Q x along the last dimension, in float32: a new tensor [..., n]. Twice gives x again.

    O(n log n): per block, butterflies of span 1, 2, 4, ... (a, b -> a + b, a - b), then one division by sqrt(size).
    """
    x = x.float()
    blocks = [_walsh_hadamard(x[..., start : start + size]) for start, size in rotation_blocks(x.shape[-1])]
    return torch.cat(blocks, dim=-1) if blocks else x.clone()


def _walsh_hadamard(x: Tensor) -> Tensor:
    size = x.shape[-1]
    span = 1
    while span < size:
        first, second = x.reshape(*x.shape[:-1], size // (2 * span), 2, span).unbind(-2)
        x = torch.stack([first + second, first - second], dim=-2).flatten(-3)
        span *= 2
    return x / math.sqrt(size)
