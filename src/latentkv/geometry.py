"""The shape of a model's attention: the only facts about a model that the cache, the planner and the kernels need.

A geometry is made once from a Hugging Face `config.json` (`latentkv.geometry.from_config`) by its fields, never by a
list of model names, and is frozen. Sizes keep the names they have in the config. Letters used for shapes everywhere:

    B sequences · T new tokens of the whole ragged batch · S context tokens · H query heads · P tokens in a page
    L kv_lora_rank (latent) · R qk_rope_head_dim · N qk_nope_head_dim · V v_head_dim · G KV heads · D head_dim
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class MLAGeometry:
    """Multi-head Latent Attention (DeepSeek-V2, arXiv:2405.04434, section 2.1): one latent and one RoPE key per token.

    `rope_groups` is 1 in every published model: each head's query sees the whole RoPE key. A model converted exactly
    from GQA has one group per former KV head: the RoPE key is `rope_groups` blocks side by side, and head h's query
    is zero outside block `h * rope_groups // num_attention_heads`, so only that block of it is stored and computed.
    """

    num_hidden_layers: int
    num_attention_heads: int
    kv_lora_rank: int
    qk_rope_head_dim: int
    qk_nope_head_dim: int
    v_head_dim: int
    q_lora_rank: int | None = None
    rope_groups: int = 1

    @property
    def kind(self) -> Literal["mla"]:
        return "mla"

    @property
    def row_elements(self) -> int:
        """Elements cached per token and layer: L + R."""
        return self.kv_lora_rank + self.qk_rope_head_dim

    @property
    def query_rope_dim(self) -> int:
        """RoPE elements that one query head really has: R / rope_groups."""
        return self.qk_rope_head_dim // self.rope_groups


@dataclass(frozen=True, slots=True)
class AttentionGeometry:
    """Attention that caches keys and values per KV head: MHA, GQA or MQA by the number of KV heads."""

    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    v_head_dim: int

    @property
    def kind(self) -> Literal["mha", "gqa", "mqa"]:
        if self.num_key_value_heads == self.num_attention_heads:
            return "mha"
        return "mqa" if self.num_key_value_heads == 1 else "gqa"

    @property
    def row_elements(self) -> int:
        """Elements cached per token and layer: G * (D + V)."""
        return self.num_key_value_heads * (self.head_dim + self.v_head_dim)


Geometry = MLAGeometry | AttentionGeometry
