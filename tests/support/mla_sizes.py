"""Heads and widths of one MLA call, and the random query and weights that go with them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from latentkv.cache.layout import RowLayout, mla_row
from latentkv.ops.absorb import UpProjection
from support.hostile import Hostile, strided_normal


@dataclass(frozen=True)
class MLASizes:
    """The papers' letters; R is the whole RoPE key, of which each of `groups` of heads has a part of its own."""

    H: int
    L: int
    R: int
    N: int = 0
    V: int = 0
    groups: int = 1

    @property
    def query_rope(self) -> int:
        return self.R // self.groups

    @property
    def scale(self) -> float:
        return (self.N + self.query_rope) ** -0.5

    def row(self, format: str = "f32") -> RowLayout:
        return mla_row(format, kv_lora_rank=self.L, qk_rope_head_dim=self.R)

    def query(self, case: Hostile, dtype: torch.dtype = torch.float32) -> Tensor:
        """[T, H, N + R], strided."""
        return strided_normal(case.batch.num_tokens, self.H, self.N + self.query_rope, seed=11, dtype=dtype)

    def up(self, dtype: torch.dtype = torch.float32) -> UpProjection:
        both = strided_normal(self.H * (self.N + self.V), self.L, seed=7) * self.L**-0.5
        return UpProjection.from_kv_b_proj(both.to(dtype), num_heads=self.H, qk_nope_head_dim=self.N)
