"""RMSNorm (Zhang and Sennrich, arXiv:1910.07467, equation 4)."""

from __future__ import annotations

import torch
from torch import Tensor


def rms_norm(x: Tensor, weight: Tensor, *, eps: float) -> Tensor:
    """`x / sqrt(mean(x²) + eps) * weight` over the last dimension, computed in float32.

    x:      [..., n] float32 | bfloat16, read only, any strides
    weight: [n] any float dtype
    Returns [..., n] in x's dtype. The product with the weight is rounded once, from float32.
    """
    wide = x.float()
    inverse = torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + eps)
    return (wide * inverse * weight.float()).to(x.dtype)
