"""The linear map of a checkpoint's weight, whatever dtype each side has."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`x @ weightᵀ + bias`, computed and returned in x's dtype.

    x:      [..., in] float32 | bfloat16, read only
    weight: [out, in] any float dtype; converted for this call when it differs from x's, which copies it
    bias:   [out] any float dtype, or None
    Returns [..., out].
    """
    return functional.linear(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype))
