"""How a router chooses, as csrc/route.h wants it told."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from latentkv.ops.moe import RoutingConfig

if TYPE_CHECKING:
    from latentkv._native import RoutingRule


def routing_rule(config: RoutingConfig, experts: int, bias: Tensor | None) -> RoutingRule:
    """The rule for so many experts, which keeps `bias` [experts] float32 alive; `config` was checked against both.

    Raises DeclinedError for another dtype or device of `bias`.
    """
    from latentkv import _native

    return _native.routing_rule(
        experts=experts,
        chosen=config.num_experts_per_tok,
        groups=config.n_group if config.is_grouped else 1,
        best_groups=config.topk_group if config.is_grouped else 1,
        group_terms=2 if config.is_grouped and config.method == "noaux_tc" else 1,
        sigmoid=config.scoring == "sigmoid",
        normalised=config.norm_topk_prob,
        factor=config.routed_scaling_factor,
        bias=bias,
    )
