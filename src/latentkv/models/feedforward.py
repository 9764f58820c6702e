"""The feed-forward blocks: dense SwiGLU and mixture of experts."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from latentkv.backends.kernels import Kernels
from latentkv.backends.native_blocks import GatedMaps, GatedParts, RoutedParts
from latentkv.models.config import ModelConfig, MoEConfig
from latentkv.models.weights import TensorReader
from latentkv.ops.linear import InputNorm, Projection
from latentkv.ops.moe import Routed


@dataclass(frozen=True)
class GatedWeights:
    """One SwiGLU block: gate and up [intermediate, hidden], down [hidden, intermediate]."""

    gate: Projection
    up: Projection
    down: Projection

    @property
    def maps(self) -> GatedMaps:
        """All three."""
        return self.gate, self.up, self.down

    @staticmethod
    def read(reader: TensorReader, prefix: str, hidden: int, width: int, dtype: torch.dtype) -> GatedWeights:
        """Take the block's tensors, named `prefix` + their Hugging Face names."""
        return GatedWeights(
            gate=Projection(reader.take_matrix(f"{prefix}gate_proj.weight", (width, hidden), dtype)),
            up=Projection(reader.take_matrix(f"{prefix}up_proj.weight", (width, hidden), dtype)),
            down=Projection(reader.take_matrix(f"{prefix}down_proj.weight", (hidden, width), dtype)),
        )


@dataclass(frozen=True)
class DenseFeedForward:
    """One SwiGLU block for every token."""

    weights: GatedWeights

    @staticmethod
    def read(reader: TensorReader, prefix: str, config: ModelConfig, dtype: torch.dtype) -> DenseFeedForward:
        """Take the block's tensors, named `prefix` + their Hugging Face names."""
        return DenseFeedForward(GatedWeights.read(reader, prefix, config.hidden_size, config.intermediate_size, dtype))

    def forward(self, hidden: Tensor, kernels: Kernels, *, norm: InputNorm, factor: float) -> Tensor:
        """`hidden + factor * block(norm(hidden))`: [T, hidden] to [T, hidden]."""
        inner = kernels.linear_gated(hidden, self.weights.gate, self.weights.up, norm=norm)
        return kernels.linear_stack(inner, (self.weights.down,), residual=hidden, factor=factor)[0]

    def block(self, *, norm: InputNorm, factor: float) -> GatedParts:
        """`forward` as what a native block is made of."""
        weights = self.weights
        return GatedParts(norm=norm, gate=weights.gate, up=weights.up, down=weights.down, factor=factor)


@dataclass(frozen=True)
class MoEFeedForward:
    """Routed experts plus the shared ones.

    router: [E, hidden], its logits are float32; router_bias: [E] float32 where the routing has one
    """

    config: MoEConfig
    router: Projection
    router_bias: Tensor | None
    experts: tuple[GatedWeights, ...]
    shared: GatedWeights | None

    @staticmethod
    def read(
        reader: TensorReader, prefix: str, config: ModelConfig, moe_config: MoEConfig, dtype: torch.dtype
    ) -> MoEFeedForward:
        """Take the block's tensors, named `prefix` + their Hugging Face names."""
        hidden, width, count = config.hidden_size, moe_config.moe_intermediate_size, moe_config.n_routed_experts
        biased = moe_config.routing.method == "noaux_tc"
        shared = moe_config.n_shared_experts
        return MoEFeedForward(
            config=moe_config,
            router=Projection(reader.take(f"{prefix}gate.weight", (count, hidden), dtype)),
            # Biases are compared at 1e-3 differences: they stay float32 whatever the model computes in.
            router_bias=reader.take(f"{prefix}gate.e_score_correction_bias", (count,), torch.float32)
            if biased
            else None,
            experts=tuple(
                GatedWeights.read(reader, f"{prefix}experts.{index}.", hidden, width, dtype) for index in range(count)
            ),
            shared=GatedWeights.read(reader, f"{prefix}shared_experts.", hidden, width * shared, dtype)
            if shared
            else None,
        )

    def forward(self, hidden: Tensor, kernels: Kernels, *, norm: InputNorm, factor: float) -> Tensor:
        """`hidden + factor * block(norm(hidden))`: [T, hidden] to [T, hidden]."""
        normed = kernels.rms_norm(hidden, norm.weight, eps=norm.eps)
        (logits,) = kernels.linear_stack(normed.float(), (self.router,))
        routed = kernels.choose(logits, config=self.config.routing, bias=self.router_bias)
        total = self._routed(normed, routed, kernels)
        if self.shared is not None:
            inner = kernels.linear_gated(normed, self.shared.gate, self.shared.up)
            total += kernels.linear_stack(inner, (self.shared.down,))[0]
        return hidden + total.to(hidden.dtype) * factor

    def block(self, *, norm: InputNorm, factor: float) -> RoutedParts:
        """`forward` as what a native block is made of."""
        return RoutedParts(
            norm=norm,
            router=self.router,
            routing=self.config.routing,
            bias=self.router_bias,
            experts=tuple(expert.maps for expert in self.experts),
            shared=None if self.shared is None else self.shared.maps,
            factor=factor,
        )

    def _routed(self, normed: Tensor, routed: Routed, kernels: Kernels) -> Tensor:
        """What ops/moe.py's `moe` computes without the shared expert, in float32: tokens sorted by expert.

        Experts that no token chose are not touched: they may not be in memory.
        """
        chosen = routed.experts.flatten()
        order = chosen.argsort(stable=True)
        tokens = order // routed.experts.shape[1]
        counts = chosen.bincount(minlength=len(self.experts)).tolist()
        used = [(self.experts[index], count) for index, count in enumerate(counts) if count]
        total = torch.zeros(normed.shape, dtype=torch.float32, device=normed.device)
        if not used:
            return total
        rows = [count for _, count in used]
        inner = kernels.linear_groups(
            normed[tokens], rows, [expert.up for expert, _ in used], gates=[expert.gate for expert, _ in used]
        )
        out = kernels.linear_groups(inner, rows, [expert.down for expert, _ in used])
        return total.index_add_(0, tokens, out * routed.weights.flatten()[order, None])
