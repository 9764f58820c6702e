"""A model's half-layers as native blocks, and which stretches of them one call can run.

Half-layer 2 i is layer i's attention, 2 i + 1 its feed-forward block. What has no block (weights that kernels decline)
ends a stretch: the layer computes it op by op, and the next stretch begins behind it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from latentkv.backends.kernels import Kernels
from latentkv.backends.native import NativePlan
from latentkv.backends.native_blocks import BlockParts, NativeBlocks
from latentkv.cache.latent import LatentCache
from latentkv.models.step import Step

if TYPE_CHECKING:
    from latentkv._native import Block


@dataclass(frozen=True)
class HalfLayers:
    """The blocks of a model for one implementation of kernels and one kind of cache.

    rotated:    whether they are for caches whose latents are stored rotated
    stretches:  for every half-layer, its block and those that follow without a gap; empty where it has none
    """

    kernels: Kernels
    rotated: bool
    native: NativeBlocks
    stretches: tuple[tuple[Block, ...], ...]

    @staticmethod
    def make(
        parts: Sequence[BlockParts | None], kernels: Kernels, native: NativeBlocks, *, rotated: bool
    ) -> HalfLayers:
        """Blocks from the parts of all half-layers in order, None for what cannot be one."""
        stretches: list[tuple[Block, ...]] = []
        following: tuple[Block, ...] = ()
        for one in reversed(parts):
            block = None if one is None else native.make(one)
            following = () if block is None else (block, *following)
            stretches.append(following)
        return HalfLayers(kernels, rotated, native, tuple(reversed(stretches)))

    def serves(self, kernels: Kernels, *, rotated: bool) -> bool:
        """Whether these are the blocks for such kernels and such a cache."""
        return self.kernels is kernels and self.rotated == rotated

    def run(self, first: int, hidden: Tensor, step: Step, cache: LatentCache) -> int | None:
        """Run the stretch that begins at half-layer `first` over hidden [T, hidden], in place.

        Returns how many half-layers ended well; None where kernels decline the step, or where they raise under a guard:
        nothing has been written then. Sums that are not finite are the guard's to judge, who sees the next half-layer.
        """
        blocks, plan = self.stretches[first], step.plan
        if not blocks:
            return 0
        if not isinstance(plan, NativePlan):
            return None
        try:
            done = self.native.run(blocks, hidden, plan=plan, batch=step.batch, angles=step.angles, cache=cache)
        except Exception as error:
            if step.watch is None or isinstance(error, IndexError):
                raise
            step.watch.failed("native", error)
            return None
        if step.watch is not None and done:
            step.watch.note(plan.path)
        return done
