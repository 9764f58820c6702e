"""Half-layers as native blocks: attention or a feed-forward block, its norm and its residual, in one call for many.

A decode step has a dozen ops in each layer, and from Python each costs as much as a small one takes. A block is made
once from a layer's weights; a step then runs all blocks in one call, with the kernels, and to the same bits, of the op
by op path, which stays for everything that blocks do not take.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from latentkv.backends.base import Plan
from latentkv.backends.linear import NativeLinear
from latentkv.backends.native import NativePlan, padded_tokens
from latentkv.backends.native_codes import native_codes, native_parts
from latentkv.backends.native_project import readable
from latentkv.backends.native_routing import routing_rule
from latentkv.cache.batch import Batch
from latentkv.cache.latent import LatentCache
from latentkv.ops.absorb import UpProjection
from latentkv.ops.linear import InputNorm, Projection
from latentkv.ops.moe import RoutingConfig

if TYPE_CHECKING:
    from latentkv._native import Block, Isa, Weight

# With more new tokens Python's share is below a percent, and most sequences are in head form.
MOST_TOKENS = 64


GatedMaps = tuple[Projection, Projection, Projection]


@dataclass(frozen=True, kw_only=True)
class LatentParts:
    """What a block of Multi-head Latent Attention is made of; models/attention.py describes the parts.

    up: rotated, where `rotated`, as caches hold their latents
    """

    layer: int
    norm: InputNorm
    first_query: Projection
    kv: Projection
    query_norm: InputNorm | None
    query: Projection | None
    latent_norm: Tensor | None
    latent_eps: float
    key_norm: Tensor | None
    head_norm: Tensor | None
    up: UpProjection
    rotated: bool
    output: Projection
    rope: int
    groups: int
    interleaved: bool
    scale: float
    factor: float


@dataclass(frozen=True, kw_only=True)
class GroupedParts:
    """What a block of grouped-query attention is made of; models/attention.py describes the parts."""

    layer: int
    norm: InputNorm
    query: Projection
    key: Projection
    value: Projection
    query_norm: Tensor | None
    key_norm: Tensor | None
    output: Projection
    width: int
    value_width: int
    interleaved: bool
    scale: float
    factor: float


@dataclass(frozen=True, kw_only=True)
class GatedParts:
    """What a dense SwiGLU block is made of."""

    norm: InputNorm
    gate: Projection
    up: Projection
    down: Projection
    factor: float


@dataclass(frozen=True, kw_only=True)
class RoutedParts:
    """What a mixture of experts is made of; each expert, and the shared one, is (gate, up, down)."""

    norm: InputNorm
    router: Projection
    routing: RoutingConfig
    bias: Tensor | None
    experts: tuple[GatedMaps, ...]
    shared: GatedMaps | None
    factor: float


BlockParts = LatentParts | GroupedParts | GatedParts | RoutedParts


class NativeBlocks:
    """Makes blocks for one instruction set and runs them. None stands for what it does not take."""

    def __init__(self, isa: Isa, linear: NativeLinear, fallbacks: Counter[str]) -> None:
        from latentkv import _native

        self._native = _native
        self._isa = isa
        self._linear = linear
        self._fallbacks = fallbacks

    def make(self, parts: BlockParts) -> Block | None:
        """The block, which keeps its weights alive; None for what kernels decline, counted with its reason."""
        try:
            return self._makers[type(parts)](parts)
        except self._native.DeclinedError as reason:
            self._count(reason)
            return None

    def takes(self, plan: Plan, hidden: Tensor) -> bool:
        """Whether a step of this plan and these hidden states [T, hidden] runs in blocks."""
        few = 0 < hidden.shape[0] <= MOST_TOKENS and "head" not in plan.forms
        return few and isinstance(plan, NativePlan) and plan.isa.name == self._isa.name

    def run(
        self,
        blocks: tuple[Block, ...],
        hidden: Tensor,
        *,
        plan: NativePlan,
        batch: Batch,
        angles: tuple[Tensor, Tensor],
        cache: LatentCache,
    ) -> int | None:
        """Run the blocks in order, and return how many ended well: all, or fewer where attention's sums are not finite.

        hidden [T, hidden] is updated in place by those. Writes the new tokens' rows. None, counted with its reason,
        where kernels decline the arguments. Raises IndexError for a slot and ShapeError for a page outside the cache;
        then nothing has been written.
        """
        row = cache.layout.row
        try:
            done, _ = self._isa.run_blocks(
                blocks,
                hidden,
                storage=cache.storage,
                codes=native_codes(row),
                parts=native_parts(row),
                rotated=row.rotated,
                slots=batch.slots,
                angles=angles,
                page_table=batch.page_table,
                plan=plan.work.records,
                projected_tokens=padded_tokens(hidden.shape[0], plan.request),
                integer=self._linear.integer,
                narrow=self._linear.narrow,
                integer_attention=plan.request.integer,
                threads=torch.get_num_threads(),
            )
        except self._native.DeclinedError as reason:
            self._count(reason)
            return None
        return done

    @property
    def _makers(self) -> dict[type, Callable[[Any], Block]]:
        return {
            LatentParts: self._latent,
            GroupedParts: self._grouped,
            GatedParts: self._gated,
            RoutedParts: self._routed,
        }

    def _latent(self, parts: LatentParts) -> Block:
        handle = self._linear.handle
        return self._native.latent_block(
            layer=parts.layer,
            norm=parts.norm.weight,
            eps=parts.norm.eps,
            first_query=handle(parts.first_query),
            kv=handle(parts.kv),
            query_norm=None if parts.query_norm is None else parts.query_norm.weight,
            latent_eps=parts.latent_eps,
            query=None if parts.query is None else handle(parts.query),
            latent_norm=parts.latent_norm,
            key_norm=parts.key_norm,
            head_norm=parts.head_norm,
            w_uk=readable(parts.up.w_uk),
            w_uv=readable(parts.up.w_uv),
            output=handle(parts.output),
            rope=parts.rope,
            groups=parts.groups,
            interleaved=parts.interleaved,
            rotated=parts.rotated,
            scale=parts.scale,
            factor=parts.factor,
        )

    def _grouped(self, parts: GroupedParts) -> Block:
        handle = self._linear.handle
        return self._native.grouped_block(
            layer=parts.layer,
            norm=parts.norm.weight,
            eps=parts.norm.eps,
            query=handle(parts.query),
            key=handle(parts.key),
            value=handle(parts.value),
            query_norm=parts.query_norm,
            key_norm=parts.key_norm,
            output=handle(parts.output),
            width=parts.width,
            value_width=parts.value_width,
            interleaved=parts.interleaved,
            scale=parts.scale,
            factor=parts.factor,
        )

    def _gated(self, parts: GatedParts) -> Block:
        handle = self._linear.handle
        return self._native.gated_block(
            norm=parts.norm.weight,
            eps=parts.norm.eps,
            gate=handle(parts.gate),
            up=handle(parts.up),
            down=handle(parts.down),
            factor=parts.factor,
        )

    def _routed(self, parts: RoutedParts) -> Block:
        experts = len(parts.experts)
        return self._native.routed_block(
            norm=parts.norm.weight,
            eps=parts.norm.eps,
            router=self._linear.handle(parts.router),
            rule=routing_rule(parts.routing, experts, parts.bias),
            experts=tuple([self._gated_maps(expert) for expert in parts.experts]),
            shared=None if parts.shared is None else self._gated_maps(parts.shared),
            factor=parts.factor,
        )

    def _gated_maps(self, maps: GatedMaps) -> tuple[Weight, Weight, Weight]:
        gate, up, down = (self._linear.handle(one) for one in maps)
        return gate, up, down

    def _count(self, reason: object) -> None:
        self._fallbacks[f"blocks: {reason}"] += 1
