"""The feed-forward blocks: dense SwiGLU and mixture of experts."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from latentkv.models.config import ModelConfig, MoEConfig
from latentkv.models.weights import TensorReader
from latentkv.ops.mlp import swiglu
from latentkv.ops.moe import ExpertWeights, moe, route


@dataclass(frozen=True)
class DenseFeedForward:
    """One SwiGLU block."""

    weights: ExpertWeights

    @staticmethod
    def read(reader: TensorReader, prefix: str, config: ModelConfig, dtype: torch.dtype) -> DenseFeedForward:
        """Take the block's tensors, named `prefix` + their Hugging Face names."""
        return DenseFeedForward(_read_expert(reader, prefix, config.hidden_size, config.intermediate_size, dtype))

    def forward(self, hidden: Tensor) -> Tensor:
        """[T, hidden] to [T, hidden]."""
        return swiglu(hidden, self.weights.gate, self.weights.up, self.weights.down)


@dataclass(frozen=True)
class MoEFeedForward:
    """Routed experts plus the shared ones.

    router: [E, hidden], router_bias: [E] float32 where the routing has one
    """

    config: MoEConfig
    router: Tensor
    router_bias: Tensor | None
    experts: tuple[ExpertWeights, ...]
    shared: ExpertWeights | None

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
            router=reader.take(f"{prefix}gate.weight", (count, hidden), dtype),
            # Biases are compared at 1e-3 differences: they stay float32 whatever the model computes in.
            router_bias=reader.take(f"{prefix}gate.e_score_correction_bias", (count,), torch.float32)
            if biased
            else None,
            experts=tuple(
                _read_expert(reader, f"{prefix}experts.{index}.", hidden, width, dtype) for index in range(count)
            ),
            shared=_read_expert(reader, f"{prefix}shared_experts.", hidden, width * shared, dtype) if shared else None,
        )

    def forward(self, hidden: Tensor) -> Tensor:
        """[T, hidden] to [T, hidden]."""
        routed = route(hidden, self.router, config=self.config.routing, bias=self.router_bias)
        return moe(hidden, routed, self.experts, shared=self.shared)


def _read_expert(reader: TensorReader, prefix: str, hidden: int, width: int, dtype: torch.dtype) -> ExpertWeights:
    return ExpertWeights(
        gate=reader.take(f"{prefix}gate_proj.weight", (width, hidden), dtype),
        up=reader.take(f"{prefix}up_proj.weight", (width, hidden), dtype),
        down=reader.take(f"{prefix}down_proj.weight", (hidden, width), dtype),
    )
