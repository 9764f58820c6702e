"""What the page knows: models layer by layer, bytes of rows in every format, devices. All of it computed here.

The page's script (plan.js) only multiplies and adds what depends on the reader's choices. Rows are listed once for
every width that occurs, KV heads split over any number of tensor ranks included.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from latentkv.cache.layout import DEFAULT_PAGE_TOKENS, FORMATS, PAGE_TOKENS, layout_for
from latentkv.errors import ConfigError, UnsupportedModelError
from latentkv.geometry import Geometry, MLAGeometry
from latentkv.planner import activations, memory
from latentkv.planner.catalog import find_model, model_names
from latentkv.planner.curves import POINTS_PER_DOUBLING, SHORTEST_TOKENS
from latentkv.planner.devices import device_names, find_device
from latentkv.planner.footprint import footprint
from latentkv.planner.layers import CachedLayers
from latentkv.planner.model import Model
from latentkv.planner.notes import layer_notes
from latentkv.planner.twins import GQA_GROUPS, twins
from latentkv.planner.weights import STORED, WEIGHT_FORMATS, attention_share, weight_bytes

Record = dict[str, Any]

# What the page shows before anything is chosen.
EXAMPLE: Mapping[str, Any] = {
    "models": ("deepseek-ai/DeepSeek-V3", "meta-llama/Llama-3.1-70B"),
    "formats": ("bf16", "fp8", "int6"),
    "devices": ("NVIDIA H200 SXM",),
    "memory": "",
    "context": "32k",
    "users": "32",
    "weights": "fp8",
    "tensor": "8",
    "pipeline": "1",
    "data": "1",
    "context_ranks": "1",
    "page_tokens": str(DEFAULT_PAGE_TOKENS),
    "step_tokens": str(activations.DEFAULT_STEP_TOKENS),
    "activations": "",
    "reserve": "",
    "twins": "yes",
}


def page_data(
    models: Sequence[Model] = (), *, start: Mapping[str, Any] | None = None, gqa_groups: int = GQA_GROUPS
) -> Record:
    """The catalogue's facts and `models` of the reader's own, as values that JSON can hold.

    `start` overrides what is chosen when the page opens (the names of EXAMPLE, texts as they are typed).
    """
    counted, refused = _catalogue(models)
    records = [_model(model, gqa_groups) for model in counted]
    groups = [group for model in counted for group in (*model.layers, *_twin_layers(model, gqa_groups))]
    return {
        "formats": list(FORMATS),
        "page_tokens": list(PAGE_TOKENS),
        "weight_formats": {name: format.explained for name, format in WEIGHT_FORMATS.items()},
        "models": records,
        "refused": refused,
        "rows": _rows(groups),
        "index_rows": {str(width): _index_bytes(width) for width in sorted({group.index_elements for group in groups})},
        "devices": [record for name in device_names() if (record := _device(name))["memory_bytes"] is not None],
        "constants": _constants(),
        "start": {**EXAMPLE, **(start or {})},
    }


def _catalogue(models: Sequence[Model]) -> tuple[list[Model], list[Record]]:
    """The models that can be counted, the reader's own first, and the others with the reason."""
    counted, refused = {model.name: model for model in models}, []
    for name in model_names():
        if name in counted:
            continue
        try:
            counted[name] = find_model(name)
        except (ConfigError, UnsupportedModelError) as error:
            refused.append({"name": name, "reason": str(error)})
    return list(counted.values()), refused


def _model(model: Model, gqa_groups: int) -> Record:
    return {
        "name": model.name,
        "source": model.source,
        "params_total": model.params_total,
        "params_active": model.params_active,
        "max_context_tokens": model.max_context_tokens,
        "latent": isinstance(model.geometry, MLAGeometry),
        "row_elements": model.geometry.row_elements,
        "kv_heads": None if isinstance(model.geometry, MLAGeometry) else model.geometry.num_key_value_heads,
        "layers": [_group(group) for group in model.layers],
        "twins": [_group(group) for group in _twin_layers(model, gqa_groups)],
        "step": asdict(activations.step_sizes(model)),
        "weights": _weights(model),
        "attention_share": attention_share(model),
        "layer_notes": layer_notes(model),
        "about": model.notes,
    }


def _twin_layers(model: Model, gqa_groups: int) -> list[CachedLayers]:
    """MHA, GQA and MQA of the same heads; only of models whose layers are all alike."""
    if not model.uniform:
        return []
    return [replace(model.layers[0], geometry=twin) for twin in twins(model.geometry, groups=gqa_groups)]


def _group(group: CachedLayers) -> Record:
    geometry = group.geometry
    return {
        "count": group.count,
        "attention": group.name,
        "row": None if geometry is None else _row_name(geometry),
        "kv_heads": None if geometry is None or isinstance(geometry, MLAGeometry) else geometry.num_key_value_heads,
        "window_tokens": group.window_tokens,
        "index_elements": group.index_elements,
        "state_bytes": group.state_bytes,
    }


def _row_name(geometry: Geometry) -> str:
    """ "mla 512+64"; "kv 128+128", to which the number of KV heads is added where bytes are looked up."""
    if isinstance(geometry, MLAGeometry):
        return f"mla {geometry.kv_lora_rank}+{geometry.qk_rope_head_dim}"
    return f"kv {geometry.head_dim}+{geometry.v_head_dim}"


def _rows(groups: Iterable[CachedLayers]) -> dict[str, Record]:
    """Elements, and bytes in each of FORMATS, of every row that these layers or a rank's share of them can have."""
    rows: dict[str, Record] = {}
    for group in groups:
        geometry = group.geometry
        if isinstance(geometry, MLAGeometry):
            rows[_row_name(geometry)] = _row(geometry)
        elif geometry is not None:
            heads = geometry.num_key_value_heads
            for share in {-(-heads // ranks) for ranks in range(1, heads + 1)}:
                rows[f"{share} {_row_name(geometry)}"] = _row(replace(geometry, num_key_value_heads=share))
    return rows


def _row(geometry: Geometry) -> Record:
    return {
        "elements": geometry.row_elements,
        "bytes": [layout_for(geometry, format).row.row_bytes for format in FORMATS],
    }


def _index_bytes(width: int) -> list[int]:
    """Bytes of one indexer key in each of FORMATS."""
    alone = (CachedLayers(1, None, index_elements=width),)
    return [footprint(alone, format=format).bytes_per_token for format in FORMATS]


def _weights(model: Model) -> dict[str, int]:
    """Bytes of the weights in each format, as far as they are known."""
    formats = [*(WEIGHT_FORMATS if model.params_total is not None else ())]
    stored = [STORED] if model.weights_bytes is not None else []
    return {name: weight_bytes(model, name) for name in (*formats, *stored)}


def _device(name: str) -> Record:
    device = find_device(name)
    return {
        "name": device.name,
        "kind": device.kind,
        "memory_bytes": device.memory_bytes,
        "source": device.source.title,
        "address": device.source.address,
    }


def _constants() -> dict[str, int]:
    return {
        "activation_bytes": activations.ACTIVATION_BYTES,
        "float32_bytes": activations.FLOAT32_BYTES,
        "expanded_tokens": activations.EXPANDED_TOKENS,
        "decode_splits": activations.DECODE_SPLITS,
        "unbounded": memory.UNBOUNDED,
        "shortest_tokens": SHORTEST_TOKENS,
        "points_per_doubling": POINTS_PER_DOUBLING,
    }
