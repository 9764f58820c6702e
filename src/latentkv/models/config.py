"""One model's configuration in the terms its layers need, resolved once from a Hugging Face `config.json`.

All architectures become the same few facts here; layers never look at a `model_type`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from latentkv.errors import ConfigError, UnsupportedModelError, sentence
from latentkv.geometry import Geometry, MLAGeometry, from_config
from latentkv.models.families import Conventions, conventions_of
from latentkv.ops.moe import RoutingConfig
from latentkv.ops.rope import Rope
from latentkv.ops.rope_scaling import rope_from_config, softmax_scale

# The latents' RMSNorm keeps this epsilon in the published code whatever `rms_norm_eps` says.
LATENT_NORM_EPS = 1e-6


@dataclass(frozen=True, slots=True)
class MoEConfig:
    """Mixture-of-experts sizes: experts per layer, their width, the shared ones, and how tokens choose."""

    n_routed_experts: int
    n_shared_experts: int
    moe_intermediate_size: int
    routing: RoutingConfig


@dataclass(frozen=True, eq=False)
class ModelConfig:
    """What the layers of a model need to know.

    moe_layers: layers whose feed-forward block is a mixture of experts; the others are dense
    embedding_scale, residual_scale, logit_scale: MiniCPM's muP factors (arXiv:2404.06395, section 3); 1 elsewhere
    softmax_scale: factor on query-key products, YaRN's mscale² included
    source: the configuration it was resolved from, without nulls
    """

    geometry: Geometry
    conventions: Conventions
    rope: Rope
    softmax_scale: float
    hidden_size: int
    intermediate_size: int
    vocab_size: int
    max_position_embeddings: int
    rms_norm_eps: float
    tie_word_embeddings: bool
    embedding_scale: float
    residual_scale: float
    logit_scale: float
    moe: MoEConfig | None
    moe_layers: frozenset[int]
    eos_token_ids: frozenset[int]
    source: Mapping[str, Any]

    @staticmethod
    def from_dict(config: Mapping[str, Any]) -> ModelConfig:
        """Resolve a `config.json` (a multimodal one by its `text_config`).

        Raises ConfigError for a missing or impossible field, UnsupportedModelError for what cannot be run.
        """
        fields = _language_model(config)
        conventions = conventions_of(fields)
        geometry = from_config(fields)
        _refuse_variants(fields)
        query_dim, rope_dim = _query_dims(geometry)
        hidden_size = _size(fields, "hidden_size")
        moe_layers = _moe_layers(fields, geometry.num_hidden_layers)
        return ModelConfig(
            geometry=geometry,
            conventions=conventions,
            rope=rope_from_config(fields, dim=rope_dim, interleaved=conventions.rope_interleave),
            softmax_scale=softmax_scale(fields if isinstance(geometry, MLAGeometry) else {}, query_dim=query_dim),
            hidden_size=hidden_size,
            intermediate_size=_size(fields, "intermediate_size"),
            vocab_size=_size(fields, "vocab_size"),
            max_position_embeddings=_size(fields, "max_position_embeddings"),
            rms_norm_eps=float(fields.get("rms_norm_eps", 1e-6)),
            tie_word_embeddings=bool(fields.get("tie_word_embeddings", False)),
            embedding_scale=float(fields.get("scale_emb", 1.0)),
            residual_scale=_residual_scale(fields, geometry.num_hidden_layers),
            logit_scale=fields.get("dim_model_base", hidden_size) / hidden_size,
            moe=_moe(fields, conventions) if moe_layers else None,
            moe_layers=moe_layers,
            eos_token_ids=_token_ids(fields.get("eos_token_id")),
            source=fields,
        )


def _language_model(config: Mapping[str, Any]) -> dict[str, Any]:
    nested = config.get("text_config")
    fields = dict(nested) if isinstance(nested, Mapping) else dict(config)
    return {name: value for name, value in fields.items() if value is not None}


def _query_dims(geometry: Geometry) -> tuple[int, int]:
    """Width of one query head, and dimensions that have their own RoPE frequency pairs."""
    if isinstance(geometry, MLAGeometry):
        return geometry.qk_nope_head_dim + geometry.query_rope_dim, geometry.qk_rope_head_dim
    return geometry.head_dim, geometry.head_dim


def _refuse_variants(fields: Mapping[str, Any]) -> None:
    activation = fields.get("hidden_act", "silu")
    if activation not in ("silu", "swish"):
        raise UnsupportedModelError(sentence("hidden_act", expected="silu", got=repr(activation)))
    if fields.get("mlp_bias"):
        raise UnsupportedModelError(sentence("mlp_bias", expected="false", got="true"))
    if float(fields.get("partial_rotary_factor", 1.0)) != 1.0:
        raise UnsupportedModelError(
            sentence("partial_rotary_factor", expected="1", got=fields["partial_rotary_factor"])
        )


def _moe(fields: Mapping[str, Any], conventions: Conventions) -> MoEConfig:
    if fields.get("norm_topk_prob") and conventions.scoring_func == "softmax":
        # DeepSeek's own code then leaves out the scaling factor and transformers ignores the field.
        raise UnsupportedModelError(
            sentence("norm_topk_prob with softmax routing", expected="false (implementations disagree)", got="true")
        )
    routing = RoutingConfig(
        num_experts_per_tok=_size(fields, "num_experts_per_tok"),
        n_group=int(fields.get("n_group", 1)),
        topk_group=int(fields.get("topk_group", 1)),
        scoring=conventions.scoring_func,
        method=conventions.topk_method,
        norm_topk_prob=bool(fields.get("norm_topk_prob", False)),
        routed_scaling_factor=float(fields.get("routed_scaling_factor", 1.0)),
    )
    return MoEConfig(
        n_routed_experts=_size(fields, "n_routed_experts"),
        n_shared_experts=int(fields.get("n_shared_experts", 0)),
        moe_intermediate_size=_size(fields, "moe_intermediate_size"),
        routing=routing,
    )


def _moe_layers(fields: Mapping[str, Any], num_hidden_layers: int) -> frozenset[int]:
    if not fields.get("n_routed_experts"):
        return frozenset()
    kinds = fields.get("mlp_layer_types")
    if kinds is not None:
        if len(kinds) != num_hidden_layers or not set(kinds) <= {"dense", "sparse"}:
            expected = f"{num_hidden_layers} entries, each dense or sparse"
            raise ConfigError(sentence("mlp_layer_types", expected=expected, got=kinds))
        return frozenset(layer for layer, kind in enumerate(kinds) if kind == "sparse")
    first = int(fields.get("first_k_dense_replace", 0))
    every = int(fields.get("moe_layer_freq", 1))
    return frozenset(layer for layer in range(first, num_hidden_layers) if layer % every == 0)


def _residual_scale(fields: Mapping[str, Any], num_hidden_layers: int) -> float:
    depth = fields.get("scale_depth")
    return 1.0 if depth is None else float(depth) / math.sqrt(num_hidden_layers)


def _token_ids(value: Any) -> frozenset[int]:
    values = value if isinstance(value, list | tuple) else [] if value is None else [value]
    return frozenset(int(item) for item in values)


def _size(fields: Mapping[str, Any], name: str) -> int:
    value = fields.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ConfigError(sentence(f"config field {name}", expected="a whole number, 1 or more", got=repr(value)))
    return value
