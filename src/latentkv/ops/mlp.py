"""The gated feed-forward block (SwiGLU; Shazeer, arXiv:2002.05202, section 2)."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from latentkv.ops.linear import linear


def swiglu(x: Tensor, gate: Tensor, up: Tensor, down: Tensor) -> Tensor:
    """`down @ (silu(gate @ x) * (up @ x))`.

    x:        [T, hidden] float32 | bfloat16, read only
    gate, up: [intermediate, hidden]; down: [hidden, intermediate]; any float dtype
    Returns [T, hidden] in x's dtype.
    """
    return linear(functional.silu(linear(x, gate)) * linear(x, up), down)
