"""What one device holds when several serve a model together: its share of heads, layers, tokens and users.

    tensor    heads and weight matrices are split. An MLA latent has no heads: every rank keeps all of it.
    pipeline  layers are split.
    data      users are split, each group with all of attention (data-parallel attention); all other weights, the
              experts among them, stay split over all devices.
    context   tokens of each sequence are split over `context` of the tensor ranks, partial results merged by LSE.

Devices are tensor x pipeline x data; `context` divides `tensor`. Figures are those of the fullest device.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from latentkv.errors import OptionError, sentence
from latentkv.geometry import MLAGeometry
from latentkv.planner.footprint import Footprint, GroupFootprint, footprint
from latentkv.planner.layers import CachedLayers
from latentkv.planner.model import Model


@dataclass(frozen=True, slots=True, kw_only=True)
class Parallel:
    """Ways in which the work is split; raises OptionError for a size below 1 or a `context` that splits no rank."""

    tensor: int = 1
    pipeline: int = 1
    data: int = 1
    context: int = 1

    def __post_init__(self) -> None:
        for name in ("tensor", "pipeline", "data", "context"):
            if getattr(self, name) < 1:
                raise OptionError(sentence(f"{name} parallelism", expected="1 or more", got=getattr(self, name)))
        if self.tensor % self.context:
            raise OptionError(
                sentence(
                    "context parallelism", expected=f"a divisor of tensor parallelism ({self.tensor})", got=self.context
                )
            )

    @property
    def devices(self) -> int:
        """Devices that one copy of the model takes."""
        return self.tensor * self.pipeline * self.data

    @property
    def name(self) -> str:
        """ "TP 8, PP 2", "DP-attention 8"; "one device"."""
        sizes = (("TP", self.tensor), ("PP", self.pipeline), ("DP-attention", self.data), ("CP", self.context))
        return ", ".join(f"{name} {size}" for name, size in sizes if size > 1) or "one device"


def device_footprint(model: Model, parallel: Parallel, *, format: str, page_tokens: int) -> Footprint:
    """The cache of the fullest device, for a sequence that it takes part in; `context` is not applied yet."""
    layers = tuple(_device_layers(group, parallel) for group in model.layers)
    return footprint(layers, format=format, page_tokens=page_tokens)


def device_cache_bytes(footprint: Footprint, parallel: Parallel, *, users: int, context_tokens: int) -> int:
    """Bytes of cache on the fullest device for `users` sequences, split over data and context ranks.

    Pages of a sequence are dealt out to context ranks in turn.
    """
    own_users = -(-users // parallel.data)
    return own_users * sum(_group_bytes(group, parallel.context, context_tokens) for group in footprint.groups)


def alternatives(parallel: Parallel) -> tuple[Parallel, ...]:
    """Other ways to use as many devices for MLA: heads split, users split (DP-attention), tokens split (CP)."""
    width, stages = parallel.tensor * parallel.data, parallel.pipeline
    ways = (
        parallel,
        Parallel(tensor=width, pipeline=stages),
        Parallel(data=width, pipeline=stages),
        Parallel(tensor=width, context=width, pipeline=stages),
    )
    return tuple(dict.fromkeys(ways))


def _device_layers(group: CachedLayers, parallel: Parallel) -> CachedLayers:
    count = -(-group.count // parallel.pipeline)
    state = None if group.state_bytes is None else -(-group.state_bytes // parallel.tensor)
    geometry = group.geometry
    if geometry is not None and not isinstance(geometry, MLAGeometry):
        head_ranks = parallel.tensor // parallel.context
        geometry = replace(geometry, num_key_value_heads=-(-geometry.num_key_value_heads // head_ranks))
    if geometry is not None:
        geometry = replace(geometry, num_hidden_layers=count)
    return replace(group, count=count, geometry=geometry, state_bytes=state)


def _group_bytes(group: GroupFootprint, context_ranks: int, context_tokens: int) -> int:
    page_bytes = group.row_bytes * group.layout.page_tokens if group.layout else 0
    pages = -(-group.pages(context_tokens) // context_ranks)
    return group.layers.count * (pages * page_bytes + (group.layers.state_bytes or 0))
