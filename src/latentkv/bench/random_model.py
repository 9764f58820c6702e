"""Dense models of random weights, with MLA or grouped-query attention, for measuring speed without a checkpoint.

Made in seconds. Knows the names and shapes of a checkpoint's tensors, and nothing of speed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from latentkv.errors import CheckpointError, sentence
from latentkv.geometry import AttentionGeometry, MLAGeometry, from_config
from latentkv.models.weights import Storage
from latentkv.ops.quantized import GroupedWeight

# 198M parameters, the latent, RoPE and head sizes of the large models.
CONFIG: Mapping[str, Any] = {
    "model_type": "deepseek_v2",
    "hidden_size": 1024,
    "num_hidden_layers": 8,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "q_lora_rank": 768,
    "kv_lora_rank": 512,
    "qk_rope_head_dim": 64,
    "qk_nope_head_dim": 128,
    "v_head_dim": 128,
    "intermediate_size": 2816,
    "first_k_dense_replace": 8,
    "vocab_size": 32000,
    "max_position_embeddings": 16384,
    "rms_norm_eps": 1e-6,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    "tie_word_embeddings": False,
}


class RandomSource:
    """A WeightSource of random bfloat16 tensors for a dense configuration: DeepSeek-V2's with a query rank, or Llama's.

    Matrices are drawn with a deviation of `in ** -0.5`, norms are 1. The same seed gives the same model.
    """

    def __init__(self, config: Mapping[str, Any] = CONFIG, *, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self._tensors = {name: _draw(shape, generator) for name, shape in shapes_of(config).items()}

    @property
    def description(self) -> str:
        """For error messages."""
        return "the random model"

    def names(self) -> frozenset[str]:
        """Every tensor."""
        return frozenset(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        """The tensor's shape."""
        return tuple(self._tensor(name).shape)

    def get(self, name: str, *, dtype: torch.dtype | None) -> Tensor:
        """The tensor in `dtype`, without a copy where that is None or bfloat16."""
        tensor = self._tensor(name)
        return tensor if dtype is None else tensor.to(dtype)

    def grouped(self, name: str) -> GroupedWeight | None:
        """None: these are floats."""
        self._tensor(name)
        return None

    def storage(self, name: str) -> Storage:
        """In memory already, as a mapped file's tensors may be: it takes no more when the model is read."""
        return Storage(self._tensor(name).dtype, is_mapped=True)

    def _tensor(self, name: str) -> Tensor:
        try:
            return self._tensors[name]
        except KeyError:
            raise CheckpointError(sentence(self.description, expected=f"a tensor {name}", got="none")) from None


def _draw(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    if len(shape) == 1:
        return torch.ones(shape, dtype=torch.bfloat16)
    return torch.empty(shape, dtype=torch.bfloat16).normal_(std=shape[1] ** -0.5, generator=generator)


def shapes_of(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Every tensor of the model by name. Raises TypeError for latents without a query rank."""
    geometry = from_config(config)
    hidden, width, vocab = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    attention = _latent(hidden, geometry) if isinstance(geometry, MLAGeometry) else _grouped(hidden, geometry)
    layer: dict[str, tuple[int, ...]] = {
        "input_layernorm": (hidden,),
        **{f"self_attn.{name}": shape for name, shape in attention.items()},
        "post_attention_layernorm": (hidden,),
        "mlp.gate_proj": (width, hidden),
        "mlp.up_proj": (width, hidden),
        "mlp.down_proj": (hidden, width),
    }
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocab, hidden)}
    for index in range(geometry.num_hidden_layers):
        shapes |= {f"model.layers.{index}.{name}.weight": shape for name, shape in layer.items()}
    return shapes | {"model.norm.weight": (hidden,), "lm_head.weight": (vocab, hidden)}


def _latent(hidden: int, geometry: MLAGeometry) -> dict[str, tuple[int, ...]]:
    if geometry.q_lora_rank is None:
        raise TypeError("a random model with latents needs a query rank")
    heads, latent, rank = geometry.num_attention_heads, geometry.kv_lora_rank, geometry.q_lora_rank
    nope, value = geometry.qk_nope_head_dim, geometry.v_head_dim
    return {
        "q_a_proj": (rank, hidden),
        "q_a_layernorm": (rank,),
        "q_b_proj": (heads * (nope + geometry.query_rope_dim), rank),
        "kv_a_proj_with_mqa": (geometry.row_elements, hidden),
        "kv_a_layernorm": (latent,),
        "kv_b_proj": (heads * (nope + value), latent),
        "o_proj": (hidden, heads * value),
    }


def _grouped(hidden: int, geometry: AttentionGeometry) -> dict[str, tuple[int, ...]]:
    heads, groups = geometry.num_attention_heads, geometry.num_key_value_heads
    return {
        "q_proj": (heads * geometry.head_dim, hidden),
        "k_proj": (groups * geometry.head_dim, hidden),
        "v_proj": (groups * geometry.v_head_dim, hidden),
        "o_proj": (hidden, heads * geometry.v_head_dim),
    }
