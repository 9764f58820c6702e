"""A GQA or MHA checkpoint seen as an MLA checkpoint that computes the same function.

All rotated keys of a token, side by side, are its one RoPE key (R = G * D, the frequencies repeated per KV head; each
query is zero outside its own KV head's block, which `rope_groups` says instead of storing zeros). All values, side by
side, are its latent (L = G * V); W_UV picks each head's block out of it, and there is no position-free part (N = 0).
Same logits, same bytes per token: nothing is compressed yet.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from latentkv.errors import CheckpointError, UnsupportedModelError, sentence
from latentkv.geometry import AttentionGeometry, from_config
from latentkv.models.config import ModelConfig
from latentkv.models.families import CONVERTED
from latentkv.models.weights import Storage, WeightSource
from latentkv.ops.quantized import GroupedWeight, stack

_KEY = re.compile(r"^(model\.layers\.\d+\.self_attn\.)k_proj\.(weight|bias)$")
_VALUE = re.compile(r"\.self_attn\.v_proj\.(weight|bias)$")
_MADE = re.compile(r"^(model\.layers\.\d+\.self_attn\.)(kv_a_proj_with_mqa|kv_b_proj)\.(weight|bias)$")

# Fields of the original that say how keys and values were cached or rotated; the converted model says it differently.
_REPLACED = ("num_key_value_heads", "head_dim", "rope_theta", "rope_scaling", "rope_parameters", "architectures")


def exact_mla_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration of the MLA model that computes what a GQA or MHA model computes.

    Raises UnsupportedModelError when the model has latents already, and whatever `ModelConfig.from_dict` raises.
    """
    resolved = ModelConfig.from_dict(config)
    geometry = resolved.geometry
    if not isinstance(geometry, AttentionGeometry):
        raise UnsupportedModelError(
            sentence("exact conversion", expected="a GQA, MQA or MHA model", got="a model that has latents already")
        )
    groups, conventions = geometry.num_key_value_heads, resolved.conventions
    converted = {name: value for name, value in resolved.source.items() if name not in _REPLACED}
    return converted | {
        "model_type": CONVERTED,
        "converted_from": resolved.source["model_type"],
        "kv_lora_rank": groups * geometry.v_head_dim,
        "qk_rope_head_dim": groups * geometry.head_dim,
        "qk_nope_head_dim": 0,
        "v_head_dim": geometry.v_head_dim,
        "rope_groups": groups,
        "rope_frequencies": resolved.rope.inverse_frequencies.repeat(groups).tolist(),
        "rope_magnitude": resolved.rope.magnitude,
        "rope_interleave": conventions.rope_interleave,
        "qkv_bias": conventions.qkv_bias,
        "query_bias": conventions.qkv_bias,
        "output_bias": conventions.output_bias,
        "qk_norm": conventions.qk_norm,
        "latent_norm": False,
    }


class ExactMLASource:
    """A WeightSource that presents a GQA checkpoint's tensors under MLA's names; the rest passes through."""

    def __init__(self, source: WeightSource, config: Mapping[str, Any]) -> None:
        geometry = from_config(config)
        if not isinstance(geometry, AttentionGeometry):
            raise UnsupportedModelError("exact conversion: expected a GQA, MQA or MHA model, got one with latents.")
        self._source = source
        self._geometry = geometry

    @property
    def description(self) -> str:
        """The original file or folder, for error messages."""
        return self._source.description

    def names(self) -> frozenset[str]:
        """The original's names, k_proj and v_proj replaced by kv_a_proj_with_mqa and kv_b_proj."""
        names: set[str] = set()
        for name in self._source.names():
            key = _KEY.match(name)
            if key:
                names.add(f"{key[1]}kv_a_proj_with_mqa.{key[2]}")
                names.add(f"{key[1]}kv_b_proj.weight")
            elif not _VALUE.search(name):
                names.add(name)
        return frozenset(names)

    def shape(self, name: str) -> tuple[int, ...]:
        """The tensor's shape, from the shapes of those it is made of."""
        made = _MADE.match(name)
        if made is None:
            return self._source.shape(name)
        if made[2] == "kv_b_proj":
            heads, groups, width = self._sizes()
            return heads * width, groups * width
        key, value = (self._source.shape(f"{made[1]}{part}.{made[3]}") for part in ("k_proj", "v_proj"))
        return value[0] + key[0], *key[1:]

    def get(self, name: str, *, dtype: torch.dtype | None) -> Tensor:
        """The tensor; kv_a_proj_with_mqa is values on top of keys, kv_b_proj the selector of each head's block."""
        made = _MADE.match(name)
        if made is None:
            return self._source.get(name, dtype=dtype)
        if name not in self.names():
            raise CheckpointError(sentence(self.description, expected=f"a tensor {name}", got="none"))
        if made[2] == "kv_b_proj":
            return self._selector(dtype or torch.float32)
        value, key = (self._source.get(f"{made[1]}{part}.{made[3]}", dtype=dtype) for part in ("v_proj", "k_proj"))
        return torch.cat([value, key])

    def grouped(self, name: str) -> GroupedWeight | None:
        """The original's; for kv_a_proj_with_mqa values on top of keys, where both are stored alike."""
        made = _MADE.match(name)
        if made is None:
            return self._source.grouped(name)
        if made[2] == "kv_b_proj":
            return None
        value, key = (self._source.grouped(f"{made[1]}{part}.{made[3]}") for part in ("v_proj", "k_proj"))
        return None if value is None or key is None else stack([value, key])

    def storage(self, name: str) -> Storage:
        """The original's; what is made of several tensors is a copy."""
        made = _MADE.match(name)
        if made is None:
            return self._source.storage(name)
        if made[2] == "kv_b_proj":
            return Storage(torch.float32, is_mapped=False)
        value, key = (self._source.storage(f"{made[1]}{part}.{made[3]}") for part in ("v_proj", "k_proj"))
        grouped = (value.grouped_bytes, key.grouped_bytes)
        packed_bytes = None if grouped[0] is None or grouped[1] is None else grouped[0] + grouped[1]
        return Storage(key.dtype, is_mapped=False, grouped_bytes=packed_bytes)

    def _sizes(self) -> tuple[int, int, int]:
        return self._geometry.num_attention_heads, self._geometry.num_key_value_heads, self._geometry.v_head_dim

    def _selector(self, dtype: torch.dtype) -> Tensor:
        """W_UV [H * V, G * V]: head h's rows pick block h * G // H of the latent."""
        heads, groups, width = self._sizes()
        owner = torch.arange(heads) * groups // heads
        blocks = torch.nn.functional.one_hot(owner, groups).to(dtype)
        return torch.kron(blocks, torch.eye(width, dtype=dtype))
