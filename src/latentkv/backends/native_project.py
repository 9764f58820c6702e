"""Per-head products with the halves of W_UKV, native: absorbing queries, expanding outputs and contexts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from latentkv._native import Isa


def project_columns(isa: Isa, x: Tensor, weight: Tensor) -> Tensor:
    """`x @ weight` per head: [T, H, K] and [H, K, J] give [T, H, J] float32."""
    out = torch.empty(x.shape[0], x.shape[1], weight.shape[2])
    isa.project_columns(out, x, readable(weight), torch.get_num_threads())
    return out


def project_rows(isa: Isa, x: Tensor, weight: Tensor, *, into: Tensor) -> None:
    """`into = x @ weightᵀ` per head: [T, H, K] and [H, J, K] give [T, H, J] float32 or bfloat16."""
    isa.project_rows(into, x, readable(weight), torch.get_num_threads())


def readable(weight: Tensor) -> Tensor:
    """Without a copy for what checkpoints hold: float32 or bfloat16 with an adjacent last dimension."""
    known = weight if weight.dtype in (torch.float32, torch.bfloat16) else weight.float()
    return known if known.stride(-1) == 1 else known.contiguous()
