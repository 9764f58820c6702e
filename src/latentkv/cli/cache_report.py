"""What a model's cache costs beside the attention it stands for.

All bytes come from `latentkv.cache.layout`; this file only chooses what to compare with.
"""

from __future__ import annotations

from dataclasses import dataclass

from latentkv.cache.layout import FORMATS, layout_for
from latentkv.geometry import Geometry
from latentkv.planner.layers import attention_name
from latentkv.planner.twins import twins


@dataclass(frozen=True, slots=True)
class CacheCost:
    """Bytes of one form of attention in one cache format."""

    attention: str
    format: str
    bytes_per_token_and_layer: int
    bytes_per_token: int
    context_bytes: int
    ratio_to_own: float


def cache_costs(geometry: Geometry, *, context_tokens: int) -> tuple[CacheCost, ...]:
    """The model's own cache first, then what it is compared with, each in every format."""
    costs: list[CacheCost] = []
    for form in (geometry, *twins(geometry)):
        name = attention_name(form)
        costs.extend(_cost(name, form, format, geometry, context_tokens) for format in FORMATS)
    return tuple(costs)


def _cost(name: str, form: Geometry, format: str, own: Geometry, context_tokens: int) -> CacheCost:
    layout = layout_for(form, format)
    return CacheCost(
        attention=name,
        format=format,
        bytes_per_token_and_layer=layout.row.row_bytes,
        bytes_per_token=layout.bytes_per_token,
        context_bytes=layout.bytes_per_token * context_tokens,
        ratio_to_own=layout.bytes_per_token / layout_for(own, format).bytes_per_token,
    )
