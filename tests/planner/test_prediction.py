"""The prediction of decode speed: its parts, and the shares it multiplies ceilings with."""

from __future__ import annotations

import pytest

from latentkv.errors import ConfigError
from latentkv.geometry import MLAGeometry
from latentkv.planner.devices import find_device
from latentkv.planner.prediction import (
    DecodeModel,
    Efficiency,
    measured_efficiency,
    predict_decode,
    this_machine,
)

GEOMETRY = MLAGeometry(8, 16, 512, 64, 128, 128)
EVEN = Efficiency(
    {16: 0.5, 4: 0.25}, attention_flops={1: 0.05, 16: 0.5}, attention_read=0.5, layer_seconds=1e-3, step_seconds=2e-3
)
HERE = this_machine("here", gflops=100, read_gbs=10)
MODEL = DecodeModel(GEOMETRY, weight_bytes=4e8, weight_bits=16)


def test_parts_are_amounts_over_what_the_kernels_reach() -> None:
    found = predict_decode(MODEL, HERE, context_tokens=1000, efficiency=EVEN)
    assert found.weights_seconds == pytest.approx(4e8 / (10e9 * 0.5))
    assert found.attention_seconds == pytest.approx(8 * 16 * 2 * 1088 * 1000 / (100e9 * 0.5))
    assert found.python_seconds == pytest.approx(8e-3 + 2e-3)
    parts = (found.weights_seconds, found.attention_seconds, found.python_seconds)
    assert found.tokens_per_second == pytest.approx(1 / sum(parts))


def test_attention_of_few_heads_is_bound_by_reading() -> None:
    one_head = DecodeModel(MLAGeometry(8, 1, 512, 64, 128, 128), 4e8, 16)
    fast = this_machine("fast", gflops=1000, read_gbs=10)
    found = predict_decode(one_head, fast, context_tokens=1000, efficiency=EVEN)
    assert found.attention_seconds == pytest.approx(8 * 1152 * 1000 / (10e9 * 0.5))


@pytest.mark.parametrize(("bits", "share"), [(4.5, 0.25), (5.0, 0.25), (16, 0.5), (32, 0.5)])
def test_weights_take_the_share_of_the_nearest_width(bits: float, share: float) -> None:
    assert EVEN.weight_share(bits) == share


def test_heads_that_share_a_key_decide_what_attention_reaches() -> None:
    assert (EVEN.attention_share(3), EVEN.attention_share(16), EVEN.attention_share(128)) == (0.05, 0.5, 0.5)
    converted = DecodeModel(MLAGeometry(8, 48, 512, 64, 128, 128, rope_groups=16), 4e8, 16)
    few = predict_decode(converted, this_machine("fast", gflops=10, read_gbs=100), context_tokens=100, efficiency=EVEN)
    width = 2 * 512 + 64 // 16
    assert few.attention_seconds == pytest.approx(8 * 48 * 2 * width * 100 / (10e9 * 0.05))


def test_a_longer_context_is_never_faster() -> None:
    rates = [predict_decode(MODEL, HERE, context_tokens=n).tokens_per_second for n in (1, 128, 4096, 100_000)]
    assert rates == sorted(rates, reverse=True)


def test_measured_shares_are_shares() -> None:
    shares = measured_efficiency()
    assert all(
        0 < share <= 1
        for share in (*shares.weight_read.values(), *shares.attention_flops.values(), shares.attention_read)
    )
    assert 0 < shares.layer_seconds < 1e-2
    assert 0 < shares.step_seconds < 1e-1


def test_a_machine_of_unknown_rate_is_refused() -> None:
    with pytest.raises(ConfigError, match="fp32 rate"):
        predict_decode(MODEL, find_device("M2 Ultra"), context_tokens=1)
