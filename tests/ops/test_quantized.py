"""Weights in groups: what is packed comes back, what cannot be held is refused."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from latentkv.errors import ConfigError, ShapeError
from latentkv.ops.quantized import GROUPS, GroupedWeight, quantize, stack
from support.compare import Tolerance, assert_close

FORMATS = ("int8", "int4")


def random_parts(format: str, outputs: int, inputs: int, group: int, *, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    low, high = (-128, 128) if format == "int8" else (0, 16)
    codes = torch.randint(low, high, (outputs, inputs), generator=generator)
    scales = torch.rand(outputs, inputs // group, generator=generator).half()
    return codes, scales, -torch.rand(outputs, inputs // group, generator=generator).half()


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("outputs", [1, 15, 16, 17, 48])
def test_what_is_packed_comes_back(format: str, group: int, outputs: int) -> None:
    codes, scales, minima = random_parts(format, outputs, 2 * group, group)
    weight = GroupedWeight.pack(codes, scales, minima, format=format)
    assert weight.group == group
    assert torch.equal(weight.plain_codes, codes.to(torch.int16))
    assert torch.equal(weight.plain_values(weight.scales), scales)
    assert torch.equal(weight.plain_values(weight.minima), minima)
    expected = codes.float() * scales.float().repeat_interleave(group, 1) + minima.float().repeat_interleave(group, 1)
    assert torch.equal(weight.dequantized(), expected)


def test_zero_is_taken_from_the_code_before_scaling() -> None:
    codes, scales, _ = random_parts("int4", 5, 64, 32)
    weight = GroupedWeight.pack(codes, scales, format="int4", zero=8)
    assert torch.equal(weight.dequantized(), (codes - 8).float() * scales.float().repeat_interleave(32, 1))


@pytest.mark.parametrize("format", FORMATS)
def test_rows_are_those_of_the_whole(format: str) -> None:
    codes, scales, minima = random_parts(format, 40, 64, 16)
    weight = GroupedWeight.pack(codes, scales, minima, format=format)
    index = torch.tensor([39, 0, 16, 16, 15])
    assert torch.equal(weight.rows(index), weight.dequantized()[index])
    assert weight.rows(index[:0]).shape == (0, 64)


def test_int4_takes_half_a_byte_and_its_scales() -> None:
    weight = quantize(torch.randn(32, 128), format="int4", group=32)
    assert weight.size_bytes == 32 * 128 // 2 + 2 * 2 * 32 * 4


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("group", GROUPS)
def test_rounding_is_to_the_nearest_code(format: str, group: int) -> None:
    weight = torch.randn(20, 256)
    got = quantize(weight, format=format, group=group)
    grouped = weight.unflatten(1, (-1, group))
    width = grouped.abs().amax(-1) / 127 if format == "int8" else (grouped.amax(-1) - grouped.amin(-1)) / 15
    # Half a step, and what float16 adds to scale and minimum: 2**-11 of the group's extent, twice.
    allowed = (width * 0.5 + grouped.abs().amax(-1) * 2**-9).amax().item()
    assert_close(got.dequantized(), weight, tolerance=Tolerance(torch.float32, absolute=allowed))


def test_a_constant_group_is_held() -> None:
    weight = torch.full((3, 64), 0.5)
    assert_close(quantize(weight, format="int4").dequantized(), weight, tolerance="exact")
    assert not quantize(torch.zeros(3, 64), format="int8").dequantized().any()


def test_stacking_joins_outputs_of_one_kind_only() -> None:
    weights = [quantize(torch.randn(outputs, 64), format="int4") for outputs in (5, 20)]
    joined = stack(weights)
    assert joined is not None
    assert torch.equal(joined.dequantized(), torch.cat([weight.dequantized() for weight in weights]))
    assert stack([weights[0], quantize(torch.randn(5, 64), format="int8")]) is None
    assert stack([weights[0], quantize(torch.randn(5, 64), format="int4", group=16)]) is None


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"group": 48}, ConfigError, "divisible by a group of 16, 32, 64, 128, got"),
        ({"group": 128}, ConfigError, "divisible by a group"),
        ({"format": "int5"}, ConfigError, "int8 or int4, got 'int5'"),
    ],
)
def test_what_cannot_be_quantised_is_refused(arguments: dict, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        quantize(torch.randn(4, 192), **({"format": "int8", "group": 32} | arguments))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_nan_and_infinity_are_refused(bad: float) -> None:
    weight = torch.randn(4, 64)
    weight[2, 5] = bad
    with pytest.raises(ConfigError, match="weight: expected finite numbers"):
        quantize(weight, format="int8")


def test_a_scale_beyond_its_dtype_is_refused() -> None:
    with pytest.raises(ConfigError, match="scales: expected finite numbers"):
        quantize(torch.full((2, 32), 1e30), format="int8")


def test_parts_that_do_not_fit_are_refused() -> None:
    codes, scales, minima = random_parts("int4", 4, 64, 32)
    with pytest.raises(ConfigError, match="codes: expected 0 to 15"):
        GroupedWeight.pack(codes - 1, scales, format="int4")
    with pytest.raises(ShapeError, match="codes and scales"):
        GroupedWeight.pack(codes, scales[:3], format="int4")
    with pytest.raises(ShapeError, match="minima"):
        GroupedWeight.pack(codes, scales, minima[:, :1], format="int4")
    with pytest.raises(ConfigError, match="group"):
        GroupedWeight.pack(codes, scales[:, :0], format="int4")
    with pytest.raises(ConfigError, match="zero"):
        GroupedWeight.pack(codes, scales, format="int4", zero=16)
