"""Small random models of every family, made by transformers itself: the truth our logits are compared with.

Weights are drawn wide enough that attention is not uniform and logits differ; the routers' correction biases are not
zero. A family is a name, transformers' classes and the configuration fields that matter.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers

VOCAB = 199
_COMMON = {
    "vocab_size": VOCAB,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
    "pad_token_id": None,
}
_MLA = _COMMON | {
    "num_key_value_heads": 4,
    "kv_lora_rank": 24,
    "q_lora_rank": 20,
    "qk_nope_head_dim": 12,
    "qk_rope_head_dim": 8,
    "v_head_dim": 10,
}
_MOE = {"n_routed_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 24, "n_shared_experts": 2}
_YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "original_max_position_embeddings": 32,
    "beta_fast": 32,
    "beta_slow": 1,
}
_GQA = _COMMON | {"num_key_value_heads": 2, "head_dim": 16}


@dataclass(frozen=True)
class Family:
    """One architecture and configuration: transformers' class prefix, and the fields its configuration is made with."""

    name: str
    classes: str
    fields: Mapping[str, Any]
    saved_as: Mapping[str, Any] = field(default_factory=dict)


FAMILIES = (
    Family("deepseek-v2 dense", "DeepseekV2", _MLA | {"first_k_dense_replace": 3}),
    Family(
        "deepseek-v2-lite (moe greedy, yarn mscale = mscale_all_dim)",
        "DeepseekV2",
        _MLA
        | _MOE
        | {
            "q_lora_rank": None,
            "first_k_dense_replace": 1,
            "topk_method": "greedy",
            "rope_parameters": _YARN | {"mscale": 0.707, "mscale_all_dim": 0.707},
        },
    ),
    Family(
        "deepseek-v2 (moe group-limited, yarn)",
        "DeepseekV2",
        _MLA
        | _MOE
        | {
            "first_k_dense_replace": 1,
            "topk_method": "group_limited_greedy",
            "n_group": 4,
            "topk_group": 2,
            "routed_scaling_factor": 16.0,
            "rope_parameters": _YARN | {"mscale": 0.707, "mscale_all_dim": 0.707},
        },
    ),
    Family(
        "deepseek-v3 (moe noaux_tc, yarn mscale = mscale_all_dim)",
        "DeepseekV3",
        _MLA
        | _MOE
        | {
            "first_k_dense_replace": 1,
            "n_group": 4,
            "topk_group": 2,
            "num_nextn_predict_layers": 0,
            "rope_parameters": _YARN | {"mscale": 1.0, "mscale_all_dim": 1.0},
        },
    ),
    Family(
        "deepseek-v3 (yarn mscale != mscale_all_dim, attention bias)",
        "DeepseekV3",
        _MLA
        | _MOE
        | {
            "first_k_dense_replace": 2,
            "n_group": 1,
            "topk_group": 1,
            "attention_bias": True,
            "num_nextn_predict_layers": 0,
            "rope_parameters": _YARN | {"mscale": 1.0, "mscale_all_dim": 0.5},
        },
    ),
    Family(
        "moonlight (no query rank, half-split rope)",
        "DeepseekV3",
        _MLA
        | _MOE
        | {
            "q_lora_rank": None,
            "first_k_dense_replace": 1,
            "n_group": 1,
            "topk_group": 1,
            "rope_interleave": False,
            "num_nextn_predict_layers": 0,
        },
    ),
    Family(
        "kimi-k2",
        "DeepseekV3",
        _MLA
        | _MOE
        | {
            "first_k_dense_replace": 1,
            "n_group": 1,
            "topk_group": 1,
            "routed_scaling_factor": 2.827,
            "num_nextn_predict_layers": 0,
            "rope_parameters": _YARN | {"mscale": 1.0, "mscale_all_dim": 1.0},
        },
        saved_as={"model_type": "kimi_k2", "scoring_func": "sigmoid", "topk_method": "noaux_tc"},
    ),
    Family(
        "glm-4.7-flash",
        "Glm4MoeLite",
        _MLA | _MOE | {"n_shared_experts": 1, "qk_nope_head_dim": 24, "v_head_dim": 32, "norm_topk_prob": True},
    ),
    Family("youtu", "Youtu", _MLA | {"tie_word_embeddings": True}),
    Family("minicpm3", "MiniCPM3", _MLA | {"v_head_dim": None, "dim_model_base": 16, "tie_word_embeddings": True}),
    Family(
        "minicpm3 (longrope)",
        "MiniCPM3",
        _MLA
        | {
            "dim_model_base": 16,
            "rope_parameters": {
                "rope_type": "longrope",
                "rope_theta": 10000.0,
                "factor": 4.0,
                "original_max_position_embeddings": 64,
                "short_factor": [1.0, 1.1, 1.7, 2.5],
                "long_factor": [1.0, 1.1, 1.7, 2.5],
            },
        },
    ),
    Family(
        "llama (gqa, llama3 rope)",
        "Llama",
        _GQA
        | {
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 500000.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            }
        },
    ),
    Family("llama (mha, bias)", "Llama", _GQA | {"num_key_value_heads": 4, "attention_bias": True}),
    Family("mistral (mqa)", "Mistral", _GQA | {"num_key_value_heads": 1, "sliding_window": None}),
    Family(
        "qwen2 (yarn)",
        "Qwen2",
        _COMMON | {"num_key_value_heads": 2, "rope_parameters": _YARN, "tie_word_embeddings": True},
    ),
    Family("qwen3", "Qwen3", _GQA | {"head_dim": 20}),
)
MLA_FAMILIES = tuple(family for family in FAMILIES if "kv_lora_rank" in family.fields)
GQA_FAMILIES = tuple(family for family in FAMILIES if "kv_lora_rank" not in family.fields)


def make_model(family: Family, *, seed: int = 0, dtype: torch.dtype = torch.float32) -> transformers.PreTrainedModel:
    """A random model of the family, in evaluation mode."""
    torch.manual_seed(seed)
    config = getattr(transformers, f"{family.classes}Config")(**family.fields)
    config._attn_implementation = "eager"
    model = getattr(transformers, f"{family.classes}ForCausalLM")(config)
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if name.endswith("e_score_correction_bias"):
                tensor.uniform_(-0.2, 0.2)
            elif name.endswith("bias"):
                tensor.normal_(0, 0.2)
            elif name.endswith(("norm.weight", "layernorm.weight")):
                tensor.uniform_(0.5, 1.5)
            elif tensor.ndim >= 2:
                tensor.normal_(0, 1.5 / math.sqrt(tensor.shape[-1]))
    return model.to(dtype).eval()


def save_model(
    family: Family, folder: Path, *, seed: int = 0, dtype: torch.dtype = torch.float32, **options: Any
) -> Any:
    """Make the family's model, save it to `folder` as its users find it on a hub, and return it."""
    model = make_model(family, seed=seed)
    transformers.utils.logging.disable_progress_bar()
    model.save_pretrained(folder, **options)
    if family.saved_as:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | dict(family.saved_as)))
    return model
