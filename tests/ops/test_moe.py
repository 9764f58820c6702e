"""Routing and experts, each variant against the model it comes from in transformers."""

from __future__ import annotations

import pytest
import torch
from transformers import DeepseekV2Config, DeepseekV3Config, Glm4MoeLiteConfig
from transformers.models.deepseek_v2.modeling_deepseek_v2 import DeepseekV2Moe
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3MoE
from transformers.models.glm4_moe_lite.modeling_glm4_moe_lite import Glm4MoeLiteMoE

from latentkv.errors import ConfigError, ShapeError
from latentkv.ops.moe import ExpertWeights, Routed, RoutingConfig, moe, route
from support.compare import assert_close

HIDDEN, INTERMEDIATE, EXPERTS, TOKENS = 24, 10, 12, 37
SIZES = {
    "hidden_size": HIDDEN,
    "num_attention_heads": 4,
    "moe_intermediate_size": INTERMEDIATE,
    "n_routed_experts": EXPERTS,
    "n_shared_experts": 2,
}

# name: (transformers' module, its config, extra config fields, ours)
VARIANTS = {
    "v2_lite": (
        DeepseekV2Moe,
        DeepseekV2Config,
        {"topk_method": "greedy", "num_experts_per_tok": 3, "routed_scaling_factor": 1.0},
        RoutingConfig(num_experts_per_tok=3),
    ),
    "v2": (
        DeepseekV2Moe,
        DeepseekV2Config,
        {"topk_method": "group_limited_greedy", "num_experts_per_tok": 3, "n_group": 4, "topk_group": 2}
        | {"routed_scaling_factor": 16.0},
        RoutingConfig(
            num_experts_per_tok=3, n_group=4, topk_group=2, method="group_limited_greedy", routed_scaling_factor=16.0
        ),
    ),
    "v2_ignores_norm": (
        DeepseekV2Moe,
        DeepseekV2Config,
        {"topk_method": "greedy", "num_experts_per_tok": 3, "routed_scaling_factor": 2.0, "norm_topk_prob": True},
        RoutingConfig(num_experts_per_tok=3, routed_scaling_factor=2.0),
    ),
    "v3": (
        DeepseekV3MoE,
        DeepseekV3Config,
        {"num_experts_per_tok": 4, "n_group": 4, "topk_group": 2, "routed_scaling_factor": 2.5},
        RoutingConfig(
            num_experts_per_tok=4,
            n_group=4,
            topk_group=2,
            scoring="sigmoid",
            method="noaux_tc",
            norm_topk_prob=True,
            routed_scaling_factor=2.5,
        ),
    ),
    "moonlight_without_groups": (
        DeepseekV3MoE,
        DeepseekV3Config,
        {"num_experts_per_tok": 6, "n_group": 1, "topk_group": 1, "routed_scaling_factor": 2.446},
        RoutingConfig(
            num_experts_per_tok=6,
            scoring="sigmoid",
            method="noaux_tc",
            norm_topk_prob=True,
            routed_scaling_factor=2.446,
        ),
    ),
    "v3_without_norm": (
        DeepseekV3MoE,
        DeepseekV3Config,
        {"num_experts_per_tok": 2, "n_group": 3, "topk_group": 1, "norm_topk_prob": False}
        | {"routed_scaling_factor": 1.0},
        RoutingConfig(num_experts_per_tok=2, n_group=3, topk_group=1, scoring="sigmoid", method="noaux_tc"),
    ),
    "glm4_moe_lite": (
        Glm4MoeLiteMoE,
        Glm4MoeLiteConfig,
        {"num_experts_per_tok": 4, "n_group": 1, "topk_group": 1, "routed_scaling_factor": 1.8},
        RoutingConfig(
            num_experts_per_tok=4,
            scoring="sigmoid",
            method="noaux_tc",
            norm_topk_prob=True,
            routed_scaling_factor=1.8,
        ),
    ),
}


@pytest.fixture(params=sorted(VARIANTS))
def variant(request):
    """(transformers' module with random weights, our routing config)."""
    module_class, config_class, extra, config = VARIANTS[request.param]
    module = module_class(config_class(**SIZES, **extra)).eval()
    generator = torch.Generator().manual_seed(3)
    for tensor in [*module.parameters(), *module.buffers()]:
        tensor.data = torch.randn(tensor.shape, generator=generator) * 0.5
    return module, config


def hidden_states(tokens: int = TOKENS, seed: int = 5) -> torch.Tensor:
    return torch.randn(tokens, HIDDEN, generator=torch.Generator().manual_seed(seed))


def expert(module, index: int) -> ExpertWeights:
    gate, up = module.experts.gate_up_proj.data[index].chunk(2)
    return ExpertWeights(gate, up, module.experts.down_proj.data[index])


def shared_expert(module) -> ExpertWeights:
    mlp = module.shared_experts
    return ExpertWeights(mlp.gate_proj.weight.data, mlp.up_proj.weight.data, mlp.down_proj.weight.data)


def route_like(module, config: RoutingConfig, hidden: torch.Tensor) -> Routed:
    return route(hidden, module.gate.weight.data, config=config, bias=bias_of(module))


def bias_of(module) -> torch.Tensor | None:
    return getattr(module.gate, "e_score_correction_bias", None)


def test_routes_as_transformers_does(variant):
    module, config = variant
    hidden = hidden_states()
    with torch.no_grad():
        _, weights, experts = module.gate(hidden)
    routed = route_like(module, config, hidden)
    theirs, ours = experts.argsort(dim=1), routed.experts.argsort(dim=1)
    assert_close(routed.experts.gather(1, ours), experts.gather(1, theirs), tolerance="exact")
    assert_close(routed.weights.gather(1, ours), weights.gather(1, theirs).double(), tolerance="float32")


def test_computes_as_transformers_does(variant):
    module, config = variant
    hidden = hidden_states()
    with torch.no_grad():
        expected = module.double()(hidden.double()[None])[0]
    module.float()
    experts = [expert(module, index) for index in range(EXPERTS)]
    out = moe(hidden, route_like(module, config, hidden), experts, shared=shared_expert(module))
    assert_close(out, expected, tolerance="logits")


def test_experts_nobody_chose_are_never_touched():
    class Watched(list):
        def __init__(self, items):
            super().__init__(items)
            self.touched = set()

        def __getitem__(self, index):
            self.touched.add(index)
            return super().__getitem__(index)

    poison = ExpertWeights(*(torch.full(shape, torch.nan) for shape in [(2, HIDDEN), (2, HIDDEN), (HIDDEN, 2)]))
    real = ExpertWeights(*(torch.ones(shape) for shape in [(2, HIDDEN), (2, HIDDEN), (HIDDEN, 2)]))
    experts = Watched([real if index in (1, 4) else poison for index in range(6)])
    routed = Routed(torch.tensor([[4, 1], [1, 4], [4, 1]]), torch.full((3, 2), 0.5))
    out = moe(hidden_states(3), routed, experts)
    assert out.isfinite().all()
    assert experts.touched == {1, 4}


def test_the_order_of_a_tokens_experts_does_not_change_its_sum(variant):
    module, config = variant
    hidden = hidden_states()
    routed = route_like(module, config, hidden)
    experts = [expert(module, index) for index in range(EXPERTS)]
    flipped = Routed(routed.experts.flip(1), routed.weights.flip(1))
    assert_close(moe(hidden, flipped, experts), moe(hidden, routed, experts), tolerance="exact")


def test_no_tokens_give_no_rows(variant):
    module, config = variant
    hidden = hidden_states(0)
    routed = route_like(module, config, hidden)
    assert routed.experts.shape == (0, config.num_experts_per_tok)
    out = moe(hidden, routed, [expert(module, index) for index in range(EXPERTS)], shared=shared_expert(module))
    assert out.shape == (0, HIDDEN)


def test_logits_are_float32_whatever_the_hidden_dtype(variant):
    module, config = variant
    hidden = hidden_states().bfloat16()
    from_bfloat16, from_float32 = (route_like(module, config, values) for values in (hidden, hidden.float()))
    assert_close(from_bfloat16.experts, from_float32.experts, tolerance="exact")
    assert_close(from_bfloat16.weights, from_float32.weights, tolerance="exact")


def test_equal_scores_go_to_the_lowest_index():
    routed = route(torch.ones(2, 3), torch.zeros(300, 3), config=RoutingConfig(num_experts_per_tok=4))
    assert routed.experts.tolist() == [[0, 1, 2, 3]] * 2


def test_normalised_weights_sum_to_the_scaling_factor_even_when_every_score_underflowed():
    config = RoutingConfig(num_experts_per_tok=2, scoring="sigmoid", norm_topk_prob=True, routed_scaling_factor=3.0)
    usual = route(torch.ones(1, 1), torch.tensor([[0.0], [1.0], [2.0]]), config=config)
    assert_close(usual.weights.sum(dim=1), torch.tensor([3.0], dtype=torch.float64), tolerance="float32")
    underflowed = route(torch.ones(1, 1), torch.full((3, 1), -200.0), config=config)
    assert underflowed.weights.tolist() == [[0.0, 0.0]]


def test_a_negative_bias_still_leaves_experts_of_the_chosen_groups_only():
    """A fill of 0 instead of -inf would let experts outside the chosen groups win over negative biased scores."""
    config = RoutingConfig(num_experts_per_tok=2, n_group=2, topk_group=1, scoring="sigmoid", method="noaux_tc")
    bias = torch.tensor([-5.0, -5.0, -9.0, -9.0])
    routed = route(torch.zeros(1, 2), torch.zeros(4, 2), config=config, bias=bias)
    assert routed.experts.tolist() == [[0, 1]]
    assert routed.weights.tolist() == [[0.5, 0.5]]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"scoring": "tanh"}, "scoring: expected one of"),
        ({"method": "random"}, "method: expected one of"),
        ({"num_experts_per_tok": 0}, "num_experts_per_tok: expected 1 or more, got 0"),
        ({"n_group": 0}, "n_group: expected 1 or more, got 0"),
        ({"n_group": 2, "topk_group": 3}, "topk_group: expected 1 to n_group = 2, got 3"),
    ],
)
def test_an_impossible_config_is_refused(fields, message):
    with pytest.raises(ConfigError, match=message):
        RoutingConfig(**({"num_experts_per_tok": 1} | fields))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (RoutingConfig(7), "num_experts_per_tok: expected at most the 6 experts a token can reach, got 7"),
        (RoutingConfig(4, 2, 1, method="group_limited_greedy"), "at most the 3 experts a token can reach, got 4"),
        (RoutingConfig(1, 4, 1, method="group_limited_greedy"), "number of experts: expected n_group = 4 equal groups"),
        (RoutingConfig(1, method="noaux_tc"), "e_score_correction_bias with method noaux_tc: expected a tensor"),
    ],
)
def test_a_config_that_does_not_fit_the_experts_is_refused(config, message):
    with pytest.raises(ConfigError, match=message):
        route(torch.ones(1, 2), torch.ones(6, 2), config=config)


def test_single_expert_groups_are_refused_where_two_scores_are_summed():
    config = RoutingConfig(1, 6, 2, scoring="sigmoid", method="noaux_tc")
    with pytest.raises(ConfigError, match="6 equal groups of 2 or more, got 6"):
        route(torch.ones(1, 2), torch.ones(6, 2), config=config, bias=torch.zeros(6))


def test_wrong_shapes_are_refused():
    config = RoutingConfig(1)
    with pytest.raises(ShapeError, match=r"hidden: expected \[T, 2\], got \[1, 3\]"):
        route(torch.ones(1, 3), torch.ones(6, 2), config=config)
    with pytest.raises(ConfigError, match="method greedy: expected none, got a tensor"):
        route(torch.ones(1, 2), torch.ones(6, 2), config=config, bias=torch.zeros(6))
    noaux = RoutingConfig(1, scoring="sigmoid", method="noaux_tc")
    with pytest.raises(ShapeError, match=r"bias: expected \[6\], got \[5\]"):
        route(torch.ones(1, 2), torch.ones(6, 2), config=noaux, bias=torch.zeros(5))
    with pytest.raises(ShapeError, match="routed: expected 3 tokens, got 2"):
        moe(torch.ones(3, 2), Routed(torch.zeros(2, 1, dtype=torch.int64), torch.ones(2, 1)), [])
