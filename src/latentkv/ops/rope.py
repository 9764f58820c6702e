"""Rotary position embedding (Su et al., arXiv:2104.09864, section 3.4): the rotation itself, for any frequencies.

How a configuration's scaling (YaRN, llama3, LongRoPE, ...) changes the frequencies is in ops/rope_scaling.py.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from latentkv.errors import ShapeError, sentence


@dataclass(frozen=True)
class Rope:
    """A rotation of R dimensions, R/2 pairs, each with its own frequency.

    inverse_frequencies: [R/2] float64, radians per position of each pair
    interleaved: pairs are dimensions (2i, 2i+1), as DeepSeek stores them; otherwise (i, i + R/2), as Llama does
    magnitude: factor on cosine and sine (YaRN's and LongRoPE's attention factor); 1 without scaling
    """

    inverse_frequencies: Tensor
    interleaved: bool
    magnitude: float = 1.0

    def angles(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Cosine and sine, each [T, R/2] float32, of positions [T] int64.

        The product of position and frequency is taken in float64: in float32 it is off by 0.006 rad at position 100k.
        """
        angle = torch.outer(positions.double(), self.inverse_frequencies.to(positions.device))
        cos, sin = angle.cos(), angle.sin()
        if self.magnitude != 1.0:
            cos, sin = cos * self.magnitude, sin * self.magnitude
        return cos.float(), sin.float()


def rotate(x: Tensor, angles: tuple[Tensor, Tensor], *, interleaved: bool) -> Tensor:
    """Rotate the last dimension of x by each token's angles, computed in float32.

    x:      [T, ..., R] any float dtype, read only
    angles: cosine and sine, [T, R/2] float32 to turn all vectors of a token alike, or [T, groups, R/2] where x's
            second dimension is the group; dimensions of x between them and R share the angle
    Returns a new tensor like x. Raises ShapeError when R is odd or the shapes do not fit.
    """
    cos, sin = angles
    if x.shape[: cos.ndim - 1] != cos.shape[:-1] or x.shape[-1] != 2 * cos.shape[-1]:
        expected = f"{list(cos.shape[:-1])} first and {2 * cos.shape[-1]} last, to fit the angles"
        raise ShapeError(sentence("x", expected=expected, got=list(x.shape)))
    shared = (*cos.shape[:-1], *(1,) * (x.ndim - cos.ndim), cos.shape[-1])
    cos, sin = cos.reshape(shared), sin.reshape(shared)
    wide = x.float()
    first, second = (wide[..., 0::2], wide[..., 1::2]) if interleaved else wide.chunk(2, dim=-1)
    turned = (first * cos - second * sin, second * cos + first * sin)
    return (torch.stack(turned, dim=-1).flatten(-2) if interleaved else torch.cat(turned, dim=-1)).to(x.dtype)
