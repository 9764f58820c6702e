"""Counts a model's parameters: from the headers of its weight files, or from its configuration for known families.

Reads no weights. Counts what the language model computes with: embedding and head once each (once in all when tied),
without multi-token-prediction layers and quantisation scales. `active` is what one token uses of a mixture of experts.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

from latentkv.errors import CheckpointError, sentence
from latentkv.geometry import AttentionGeometry, Geometry, MLAGeometry
from latentkv.geometry_fields import Fields, optional_size, required_size
from latentkv.models.quantized_format import CODES, SHAPE, SUFFIXES
from latentkv.planner.weights import kv_parameters, mla_parameters

MAX_HEADER_BYTES = 100_000_000
NOT_WEIGHTS = ("_scale_inv", "_scale", "rotary_emb.inv_freq")


@dataclass(frozen=True, slots=True)
class Family:
    """What the layers of a model type hold besides the matrices that every model has."""

    qkv_bias: bool = False
    qk_norm: bool = False
    router_bias: bool = False
    experts_field: str = "n_routed_experts"
    tied: bool = False


FAMILIES = {
    "deepseek_v2": Family(),
    "deepseek_v3": Family(router_bias=True),
    "kimi_k2": Family(router_bias=True),
    "glm4_moe_lite": Family(router_bias=True),
    "youtu": Family(tied=True),
    "minicpm3": Family(tied=True),
    "llama": Family(),
    "mistral": Family(),
    "mixtral": Family(experts_field="num_local_experts"),
    "phi3": Family(),
    "gemma": Family(tied=True),
    "qwen2": Family(qkv_bias=True),
    "qwen3": Family(qk_norm=True),
    "qwen3_moe": Family(qk_norm=True, experts_field="num_experts"),
}


@dataclass(frozen=True, slots=True)
class Parameters:
    """Numbers of parameters, and where they come from; `active` is None where the experts are not understood."""

    total: int
    active: int | None
    counted_from: Literal["weights", "config"]


@dataclass(frozen=True, slots=True)
class _Experts:
    layers: int
    routed: int
    per_token: int
    expert_parameters: int


def count_parameters(fields: Fields, geometry: Geometry, weights: Path | None) -> Parameters | None:
    """The model's parameters; None when neither weight files nor a known `model_type` tell.

    Raises CheckpointError for a damaged header, ConfigError for a missing size.
    """
    family = None if _uneven(fields) else FAMILIES.get(str(fields.get("model_type")))
    experts = _experts(fields, geometry, family) if family is not None else None
    idle = experts.layers * (experts.routed - experts.per_token) * experts.expert_parameters if experts else 0
    total = weights_parameters(weights) if weights is not None else None
    if total is not None:
        return Parameters(total, total - idle if family is not None else None, "weights")
    if family is None:
        return None
    total = _config_parameters(fields, geometry, family, experts)
    return Parameters(total, total - idle, "config")


def weights_parameters(weights: Path) -> int | None:
    """Elements of all tensors of a .gguf file, or of the safetensors files of a folder; None when it has none."""
    if weights.suffix == ".gguf":
        return _gguf_parameters(weights)
    files = sorted(weights.glob("*.safetensors"))
    return sum(sum(_tensor_sizes(file)) for file in files) if files else None


def _gguf_parameters(file: Path) -> int:
    from latentkv.models.weights.gguf_file import GGUFFile

    tensors = GGUFFile(file).tensors.values()
    return sum(math.prod(tensor.shape) for tensor in tensors if not tensor.name.startswith("rope_"))


def _tensor_sizes(file: Path) -> Iterator[int]:
    remedy = "The file is damaged or incomplete: download it again."
    with file.open("rb") as stream:
        header_bytes = int.from_bytes(stream.read(8), "little")
        text = stream.read(header_bytes) if header_bytes <= MAX_HEADER_BYTES else b""
        try:
            yield from _sizes(stream, 8 + header_bytes, json.loads(text))
        except (ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
            raise CheckpointError(
                sentence(str(file), expected="a safetensors header", got="none", remedy=remedy)
            ) from error


def _sizes(stream: BinaryIO, data_start: int, records: dict[str, Any]) -> Iterator[int]:
    for name, record in records.items():
        if name.endswith(SHAPE) and name.removesuffix(SHAPE) + CODES in records:
            # Codes are padded to whole panels: what the matrix has stands in its record.
            stream.seek(data_start + record["data_offsets"][0])
            yield math.prod(struct.unpack("<2q", stream.read(16)))
        elif name != "__metadata__" and not name.endswith((*NOT_WEIGHTS, *SUFFIXES)):
            yield math.prod(record["shape"])


def _size(fields: Fields, name: str) -> int:
    return required_size(fields, name, why="needed to count parameters")


def _uneven(fields: Fields) -> bool:
    """Whether experts are in some other pattern of layers than all after the first few."""
    return bool(fields.get("mlp_only_layers")) or any(
        fields.get(name) not in (None, 1) for name in ("moe_layer_freq", "decoder_sparse_step")
    )


def _experts(fields: Fields, geometry: Geometry, family: Family) -> _Experts | None:
    routed = optional_size(fields, family.experts_field)
    if routed is None:
        return None
    width = optional_size(fields, "moe_intermediate_size") or _size(fields, "intermediate_size")
    dense = optional_size(fields, "first_k_dense_replace", minimum=0) or 0
    return _Experts(
        layers=geometry.num_hidden_layers - dense,
        routed=routed,
        per_token=_size(fields, "num_experts_per_tok"),
        expert_parameters=3 * _size(fields, "hidden_size") * width,
    )


def _config_parameters(fields: Fields, geometry: Geometry, family: Family, experts: _Experts | None) -> int:
    hidden = _size(fields, "hidden_size")
    tied = fields.get("tie_word_embeddings", family.tied)
    embeddings = _size(fields, "vocab_size") * hidden * (1 if tied else 2)
    attention = (
        mla_parameters(hidden, geometry) if isinstance(geometry, MLAGeometry) else _attention(hidden, geometry, family)
    )
    layers = geometry.num_hidden_layers * (attention + 2 * hidden)
    moe_layers = experts.layers if experts is not None else 0
    dense_layers = geometry.num_hidden_layers - moe_layers
    dense = dense_layers * 3 * hidden * _size(fields, "intermediate_size") if dense_layers else 0
    return embeddings + layers + dense + _moe(fields, hidden, family, experts) + hidden


def _moe(fields: Fields, hidden: int, family: Family, experts: _Experts | None) -> int:
    if experts is None:
        return 0
    shared = optional_size(fields, "n_shared_experts", minimum=0) or 0
    router = experts.routed * (hidden + family.router_bias)
    return experts.layers * (router + (experts.routed + shared) * experts.expert_parameters)


def _attention(hidden: int, geometry: AttentionGeometry, family: Family) -> int:
    projected = geometry.num_attention_heads * geometry.head_dim + geometry.row_elements
    return kv_parameters(hidden, geometry) + family.qkv_bias * projected + family.qk_norm * 2 * geometry.head_dim
