"""Linear maps of a checkpoint's weights, whatever dtype each side has: what every kernel must compute."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from latentkv.ops.norm import rms_norm
from latentkv.ops.quantized import GroupedWeight

Weight = Tensor | GroupedWeight


@dataclass(frozen=True, eq=False)
class Projection:
    """A linear map: weight [out, in], bias [out] or None.

    handles: what an implementation keeps with the weight, by its own name
    """

    weight: Weight
    bias: Tensor | None = None
    handles: dict[str, Any] = field(default_factory=dict, repr=False)

    @property
    def out_features(self) -> int:
        """Rows of the weight."""
        return self.weight.shape[0]

    def __call__(self, x: Tensor) -> Tensor:
        """x [..., in] to [..., out]."""
        return linear(x, self.weight, self.bias)


@dataclass(frozen=True)
class InputNorm:
    """An RMSNorm before a linear map: weight [in] and epsilon."""

    weight: Tensor
    eps: float


def linear(x: Tensor, weight: Weight, bias: Tensor | None = None) -> Tensor:
    """`x @ weightᵀ + bias`, computed and returned in x's dtype.

    x:      [..., in] float32 | bfloat16, read only
    weight: [out, in] any float dtype or grouped; converted for this call when it differs from x's, which copies it
    bias:   [out] any float dtype, or None
    Returns [..., out].
    """
    wide = weight.dequantized(x.dtype) if isinstance(weight, GroupedWeight) else weight.to(x.dtype)
    return functional.linear(x, wide, None if bias is None else bias.to(x.dtype))


def linear_stack(
    x: Tensor,
    projections: Sequence[Projection],
    *,
    norm: InputNorm | None = None,
    residual: Tensor | None = None,
    factor: float = 1.0,
    narrow: bool = False,
) -> tuple[Tensor, ...]:
    """`factor * (x @ weightᵀ + bias) + residual` of each projection; with `norm`, x is normed first.

    With `narrow`, x is then rounded to bfloat16.

    x [..., in]; residual [..., out] in x's dtype. Returns one tensor [..., out] in x's dtype for each projection.
    """
    normed = x if norm is None else rms_norm(x, norm.weight, eps=norm.eps)
    taken = normed.to(torch.bfloat16).to(x.dtype) if narrow else normed
    results = (projection(taken) for projection in projections)
    scaled = (result if factor == 1.0 else result * factor for result in results)
    return tuple(result if residual is None else residual + result for result in scaled)


def linear_gated(
    x: Tensor, gate: Projection, up: Projection, *, norm: InputNorm | None = None, narrow: bool = False
) -> Tensor:
    """`silu(gate(x)) * up(x)` (SwiGLU; Shazeer, arXiv:2002.05202, section 2): [..., in] to [..., out] in x's dtype."""
    first, second = linear_stack(x, (gate, up), norm=norm, narrow=narrow)
    return functional.silu(first) * second


def linear_groups(
    x: Tensor,
    counts: Sequence[int],
    projections: Sequence[Projection],
    *,
    gates: Sequence[Projection] | None = None,
    narrow: bool = False,
) -> Tensor:
    """Stretches of rows, `counts[i]` of them through `projections[i]`: tokens sorted by expert.

    x [sum(counts), in] to [sum(counts), out]; with `gates`, each stretch is `silu(gate(x)) * projection(x)`. All
    projections have one shape.
    """
    pieces: list[Tensor] = []
    for index, rows in enumerate(torch.split(x, list(counts))):
        if gates is None:
            pieces += linear_stack(rows, (projections[index],), narrow=narrow)
        else:
            pieces.append(linear_gated(rows, gates[index], projections[index], narrow=narrow))
    return torch.cat(pieces)
