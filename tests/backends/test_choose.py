"""Which experts native routing chooses: the reference's, in the same order, whatever the scores."""

from __future__ import annotations

import math

import pytest
import torch

from latentkv.backends.isa import available_isas
from latentkv.backends.kernels import native_kernels
from latentkv.errors import ConfigError
from latentkv.ops.moe import RoutingConfig, choose
from support.compare import assert_close

pytestmark = pytest.mark.skipif(not available_isas(), reason="needs the native extension")

EXPERTS = 64
CONFIGS = {
    "greedy": RoutingConfig(6),
    "one of all": RoutingConfig(1),
    "all": RoutingConfig(EXPERTS, scoring="sigmoid", norm_topk_prob=True),
    "groups": RoutingConfig(6, 8, 3, method="group_limited_greedy", routed_scaling_factor=16.0),
    "groups without effect": RoutingConfig(6, 8, 8, method="group_limited_greedy"),
    "noaux_tc": RoutingConfig(8, 8, 4, "sigmoid", "noaux_tc", norm_topk_prob=True, routed_scaling_factor=2.5),
    "noaux_tc, one group": RoutingConfig(4, scoring="sigmoid", method="noaux_tc", norm_topk_prob=True),
}


def some_logits(kind: str) -> torch.Tensor:
    generator = torch.Generator().manual_seed(11)
    logits = torch.randn(41, EXPERTS, generator=generator) * 3
    if kind == "ties":
        return logits.round()
    if kind == "equal":
        return torch.zeros_like(logits)
    if kind == "far apart":
        return logits * 60
    if kind == "nan":
        logits[3, 5], logits[4] = math.nan, math.nan
    if kind == "infinite":
        logits[3, 5], logits[4, 7] = math.inf, -math.inf
    return logits


@pytest.mark.parametrize("kind", ["usual", "ties", "equal", "far apart", "nan", "infinite"])
@pytest.mark.parametrize("name", CONFIGS)
def test_the_reference_choice(name: str, kind: str) -> None:
    config, logits = CONFIGS[name], some_logits(kind)
    bias = torch.linspace(-1, 1, EXPERTS) if config.method == "noaux_tc" else None
    kernels = native_kernels()
    got, want = kernels.choose(logits, config=config, bias=bias), choose(logits, config=config, bias=bias)
    assert not kernels.fallbacks
    assert torch.equal(got.weights.isnan(), want.weights.isnan())
    known = ~want.weights.isnan()
    assert torch.equal(got.experts, want.experts)
    assert_close(got.weights[known], want.weights[known].double(), tolerance="float32")


def test_no_tokens() -> None:
    routed = native_kernels().choose(torch.empty(0, EXPERTS), config=RoutingConfig(6), bias=None)
    assert routed.experts.shape == routed.weights.shape == (0, 6)


def test_what_does_not_fit_is_refused_as_the_reference_does() -> None:
    with pytest.raises(ConfigError, match="at most the 4 experts a token can reach, got 6"):
        native_kernels().choose(torch.zeros(1, 4), config=RoutingConfig(6), bias=None)


def test_strided_logits_and_gradients_go_to_the_reference_and_are_counted() -> None:
    kernels, config = native_kernels(), RoutingConfig(6)
    logits = some_logits("usual")
    spread = torch.stack([logits, logits], dim=1)[:, 0]
    assert torch.equal(kernels.choose(spread, config=config, bias=None).experts, choose(logits, config=config).experts)
    wanted = logits.clone().requires_grad_()
    assert kernels.choose(wanted, config=config, bias=None).weights.requires_grad
    assert kernels.fallbacks == {"choose: logits: strided": 1, "choose: gradients are wanted": 1}
