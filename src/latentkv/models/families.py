"""What a `config.json` does not say: conventions that live in each architecture's code, keyed by `model_type`.

Geometry is read from fields and needs none of this; running a checkpoint does. A field of the same name in the
configuration overrides the convention.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from latentkv.errors import UnsupportedModelError, sentence
from latentkv.ops.moe import Method, Scoring

# The model_type of checkpoints this project writes itself: every convention stands in their configuration.
CONVERTED = "latentkv_mla"


@dataclass(frozen=True, slots=True)
class Conventions:
    """How an architecture's code reads its weights.

    rope_interleave: RoPE pairs are (2i, 2i+1) rather than (i, i + R/2)
    qkv_bias, output_bias: whether these projections have a bias; None = as `attention_bias` says
    query_bias:  MLA's q_proj has a bias: never in DeepSeek's, maybe in a converted model
    qk_norm:     queries and keys are normalised per head before RoPE
    latent_norm: the latent is normalised before it is cached
    scoring_func, topk_method: how experts are chosen
    """

    rope_interleave: bool = False
    qkv_bias: bool | None = None
    output_bias: bool | None = None
    query_bias: bool = False
    qk_norm: bool = False
    latent_norm: bool = True
    scoring_func: Scoring = "softmax"
    topk_method: Method = "greedy"


_DEEPSEEK_V3 = Conventions(rope_interleave=True, scoring_func="sigmoid", topk_method="noaux_tc")

FAMILIES: Mapping[str, Conventions] = {
    "deepseek_v2": Conventions(rope_interleave=True),
    "deepseek_v3": _DEEPSEEK_V3,
    "kimi_k2": _DEEPSEEK_V3,
    "glm4_moe_lite": _DEEPSEEK_V3,
    "youtu": _DEEPSEEK_V3,
    "minicpm3": Conventions(),
    "llama": Conventions(),
    "mistral": Conventions(qkv_bias=False, output_bias=False),
    "qwen2": Conventions(qkv_bias=True, output_bias=False),
    "qwen3": Conventions(qk_norm=True),
    CONVERTED: Conventions(),
}


def conventions_of(config: Mapping[str, Any]) -> Conventions:
    """The conventions of a configuration's architecture, overridden by its own fields.

    Raises UnsupportedModelError for an architecture whose weights this project cannot read.
    """
    model_type = str(config.get("model_type"))
    if model_type not in FAMILIES:
        known = ", ".join(sorted(FAMILIES))
        raise UnsupportedModelError(
            sentence("model_type", expected=f"an architecture that latentkv can run ({known})", got=repr(model_type))
        )
    base = FAMILIES[model_type]
    bias = bool(config.get("attention_bias"))

    def stated(name: str) -> Any:
        value = config.get(name)
        return getattr(base, name) if value is None else value

    qkv_bias, output_bias = stated("qkv_bias"), stated("output_bias")
    return Conventions(
        rope_interleave=bool(stated("rope_interleave")),
        qkv_bias=bias if qkv_bias is None else bool(qkv_bias),
        query_bias=bool(stated("query_bias")),
        output_bias=bias if output_bias is None else bool(output_bias),
        qk_norm=bool(stated("qk_norm")),
        latent_norm=bool(stated("latent_norm")),
        scoring_func=stated("scoring_func"),
        topk_method=stated("topk_method"),
    )
