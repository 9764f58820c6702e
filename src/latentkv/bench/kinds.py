"""Random models that differ in their attention alone: MHA, GQA, MQA and MLA with all other sizes the same.

The sizes keep DeepSeek-V2's ratios at an eighth of its heads: attention is wider than the hidden state, a latent is as
wide as four heads, its RoPE key as half of one. A token's cache is then as much smaller than GQA-8's as DeepSeek-V2's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from latentkv.backends.kernels import choose_kernels
from latentkv.bench.random_model import RandomSource
from latentkv.models.config import ModelConfig
from latentkv.models.model import Model
from latentkv.models.step import Execution

HEADS, HEAD_DIM = 16, 64
COMMON: Mapping[str, Any] = {
    "hidden_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": HEADS,
    "intermediate_size": 1408,
    "vocab_size": 8192,
    "max_position_embeddings": 16384,
    "rms_norm_eps": 1e-6,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    "tie_word_embeddings": False,
}
KV_HEADS = {"MHA": HEADS, "GQA-8": 8, "GQA-4": 4, "MQA": 1}
LATENT: Mapping[str, Any] = {
    "model_type": "deepseek_v2",
    "num_key_value_heads": HEADS,
    "q_lora_rank": 384,
    "kv_lora_rank": 4 * HEAD_DIM,
    "qk_rope_head_dim": HEAD_DIM // 2,
    "qk_nope_head_dim": HEAD_DIM,
    "v_head_dim": HEAD_DIM,
    "first_k_dense_replace": COMMON["num_hidden_layers"],
}
KINDS = (*KV_HEADS, "MLA")


def config_of(kind: str, **changes: Any) -> dict[str, Any]:
    """The configuration of one of KINDS; `changes` replace fields of it."""
    if kind == "MLA":
        return {**COMMON, **LATENT, **changes}
    grouped = {"model_type": "llama", "head_dim": HEAD_DIM, "num_key_value_heads": KV_HEADS[kind]}
    return {**COMMON, **grouped, **changes}


def random_twin(kind: str, *, dtype: torch.dtype = torch.float32, **changes: Any) -> Model:
    """A model of one of KINDS; matrices are held in bfloat16 and computed in `dtype`."""
    config = config_of(kind, **changes)
    return Model.read(
        RandomSource(config),
        ModelConfig.from_dict(config),
        dtype=dtype,
        keep_stored=True,
        execution=Execution(choose_kernels()),
    )
