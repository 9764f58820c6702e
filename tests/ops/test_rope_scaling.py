"""Frequencies, magnitude and softmax scale of each kind of scaling, against transformers."""

from __future__ import annotations

import pytest
import torch
from transformers import DeepseekV2Config, DeepseekV3Config, LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.deepseek_v2.modeling_deepseek_v2 import DeepseekV2Attention, DeepseekV2RotaryEmbedding
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3Attention, DeepseekV3RotaryEmbedding

from latentkv.errors import ConfigError, UnsupportedModelError
from latentkv.ops.rope_scaling import rope_from_config, softmax_scale
from support.compare import assert_close

DIM = 64
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 40.0, "original_max_position_embeddings": 4096}
DEEPSEEK_YARN = YARN | {"beta_fast": 32, "beta_slow": 1}
FACTORS = {
    "short_factor": [1.0 + 0.01 * i for i in range(DIM // 2)],
    "long_factor": [1.0 + 0.5 * i for i in range(DIM // 2)],
}
LONGROPE = {"rope_type": "longrope", "rope_theta": 10000.0, "original_max_position_embeddings": 32768} | FACTORS
LLAMA3 = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}

# By name: the RoPE fields, and the longest position the configuration allows.
SCALED = {
    "linear": ({"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}, 8192),
    "yarn": (YARN, 163840),
    "yarn_mscale_equal": (DEEPSEEK_YARN | {"mscale": 0.707, "mscale_all_dim": 0.707}, 163840),
    "yarn_mscale_different": (DEEPSEEK_YARN | {"mscale": 1.0, "mscale_all_dim": 0.707}, 163840),
    "yarn_mscale_only": (DEEPSEEK_YARN | {"mscale": 0.5}, 163840),
    "yarn_no_truncation": (DEEPSEEK_YARN | {"truncate": False}, 163840),
    "yarn_attention_factor": (YARN | {"attention_factor": 1.25}, 163840),
    "yarn_narrow_ramp": (YARN | {"beta_fast": 1.0, "beta_slow": 1.0, "truncate": False}, 163840),
    "yarn_factor_below_one": (YARN | {"factor": 1.0}, 4096),
    "llama3": (LLAMA3 | {"original_max_position_embeddings": 8192}, 131072),
    "llama3_other_bounds": (
        LLAMA3 | {"factor": 32.0, "high_freq_factor": 2.0, "original_max_position_embeddings": 1024},
        131072,
    ),
    "longrope_short": (LONGROPE, 32768),
    "longrope_long": (LONGROPE | {"original_max_position_embeddings": 4096}, 32768),
    "longrope_attention_factor": (LONGROPE | {"attention_factor": 1.1}, 32768),
}


def assert_same_frequencies(got: torch.Tensor, expected: torch.Tensor) -> None:
    """As a ratio, since the slowest frequencies are smaller than any absolute tolerance."""
    assert (got > 0).all()
    ratio = (got / expected.double()).float()
    assert_close(ratio, torch.ones(ratio.shape, dtype=torch.float64), tolerance="float32")


@pytest.mark.parametrize("name", SCALED)
def test_frequencies_and_magnitude_are_transformers(name):
    parameters, longest = SCALED[name]
    kind = parameters["rope_type"]
    config = LlamaConfig(head_dim=DIM, max_position_embeddings=longest, rope_parameters=dict(parameters))
    # transformers takes the long factors once a sequence has outgrown the original context.
    seq_len = longest if kind == "longrope" else None
    expected, magnitude = ROPE_INIT_FUNCTIONS[kind](config, "cpu", seq_len=seq_len)
    rope = rope_from_config(
        {"rope_parameters": parameters, "max_position_embeddings": longest}, dim=DIM, interleaved=False
    )
    assert_same_frequencies(rope.inverse_frequencies, expected)
    assert_same_frequencies(torch.tensor([rope.magnitude], dtype=torch.float64), torch.tensor([magnitude]))


def test_both_spellings_of_a_configuration_mean_the_same():
    parameters = SCALED["yarn_mscale_different"][0]
    new = {"rope_parameters": parameters}
    scaling = {key: value for key, value in parameters.items() if key not in ("rope_type", "rope_theta")}
    old = {"rope_theta": 10000.0, "rope_scaling": scaling | {"type": "yarn"}}
    first, second = (rope_from_config(config, dim=DIM, interleaved=True) for config in (new, old))
    assert_close(first.inverse_frequencies, second.inverse_frequencies, tolerance="exact")
    assert first.magnitude == second.magnitude
    assert softmax_scale(new, query_dim=192) == softmax_scale(old, query_dim=192)


def test_without_scaling_the_frequencies_are_powers_of_theta():
    rope = rope_from_config({"rope_theta": 1e6}, dim=4, interleaved=True)
    assert_close(rope.inverse_frequencies, torch.tensor([1.0, 1e-3], dtype=torch.float64), tolerance="exact")
    assert rope.magnitude == 1.0


def test_partial_rotation_takes_its_frequencies_from_the_rotated_part():
    parameters = {"rope_type": "llama3", "partial_rotary_factor": 0.25} | LLAMA3
    parameters |= {"original_max_position_embeddings": 8192}
    config = LlamaConfig(head_dim=4 * DIM, rope_parameters=dict(parameters))
    expected, _ = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
    rope = rope_from_config({"rope_parameters": parameters}, dim=DIM, interleaved=False)
    assert_same_frequencies(rope.inverse_frequencies, expected)


def test_given_frequencies_override_everything():
    given = [0.5, 0.0, 0.25]
    config = {"rope_frequencies": given, "rope_magnitude": 1.5, "rope_parameters": SCALED["yarn"][0]}
    rope = rope_from_config(config, dim=6, interleaved=True)
    assert rope.inverse_frequencies.tolist() == given
    assert rope.magnitude == 1.5


DEEPSEEK = {
    "v2": (DeepseekV2Config, DeepseekV2Attention, DeepseekV2RotaryEmbedding),
    "v3": (DeepseekV3Config, DeepseekV3Attention, DeepseekV3RotaryEmbedding),
}


@pytest.mark.parametrize("name", ["yarn", "yarn_mscale_equal", "yarn_mscale_different", "yarn_mscale_only"])
@pytest.mark.parametrize("family", DEEPSEEK)
def test_scale_and_angles_are_deepseeks_at_a_position_above_zero(family, name):
    parameters, longest = SCALED[name]
    config_class, attention_class, rotary_class = DEEPSEEK[family]
    sizes = {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 4, "kv_lora_rank": 8, "q_lora_rank": 8}
    widths = {"qk_rope_head_dim": DIM, "qk_nope_head_dim": 32, "v_head_dim": 8, "max_position_embeddings": longest}
    config = config_class(**sizes, **widths, rope_parameters=dict(parameters))
    ours = {"rope_parameters": parameters, "max_position_embeddings": longest}

    scale = torch.tensor([softmax_scale(ours, query_dim=32 + DIM)], dtype=torch.float64)
    assert_same_frequencies(scale, torch.tensor([attention_class(config, 0).scaling], dtype=torch.float64))

    positions = torch.tensor([1, 7, 40])
    cos, sin = rope_from_config(ours, dim=DIM, interleaved=True).angles(positions)
    theirs = rotary_class(config)(torch.zeros(1), positions[None])
    if family == "v2":
        want_cos, want_sin = theirs.real[0], theirs.imag[0]
    else:
        want_cos, want_sin = (part[0, :, : DIM // 2] for part in theirs)
    assert_close(cos, want_cos.double(), tolerance="float32")
    assert_close(sin, want_sin.double(), tolerance="float32")


def test_scale_without_yarn_is_the_inverse_root_even_if_mscale_is_present():
    config = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mscale_all_dim": 1.0, "factor": 40}}
    assert softmax_scale(config, query_dim=64) == 0.125


@pytest.mark.parametrize(
    ("config", "dim", "message"),
    [
        ({}, 7, "RoPE dimensions: expected an even number, got 7"),
        ({"rope_frequencies": [1.0]}, 4, "rope_frequencies: expected 2 numbers, got 1"),
        ({"rope_scaling": {"type": "linear"}}, 4, "RoPE field 'factor': expected a positive number, got None"),
        ({"rope_scaling": {"type": "yarn", "factor": 4}}, 4, "RoPE field 'original_max_position_embeddings'"),
        ({"rope_scaling": {"type": "linear", "factor": "4"}}, 4, "'factor': expected a positive number, got '4'"),
        (
            {"max_position_embeddings": 8, "rope_scaling": LONGROPE | {"short_factor": [1.0]}},
            DIM,
            "rope short_factor: expected 32 numbers, got 1",
        ),
    ],
)
def test_an_impossible_configuration_is_told(config, dim, message):
    with pytest.raises(ConfigError, match=message):
        rope_from_config(config, dim=dim, interleaved=True)


def test_an_unknown_kind_of_scaling_is_refused_by_name():
    with pytest.raises(UnsupportedModelError, match=r"rope type: expected one of .*yarn.*, got 'dynamic'"):
        rope_from_config({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, dim=8, interleaved=True)
