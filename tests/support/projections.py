"""Linear maps of every format for tests, with what they compute in float64."""

from __future__ import annotations

import torch
from torch import Tensor

from latentkv.ops.linear import Projection
from latentkv.ops.quantized import GroupedWeight, quantize
from support.hostile import strided_normal

FORMATS = ("float32", "bfloat16", "int8", "int4")


def make_projection(
    format: str, outputs: int, inputs: int, *, group: int = 32, bias: bool = False, seed: int = 1
) -> Projection:
    """Weights of size 1 / sqrt(in), so that results are of size 1."""
    weight = strided_normal(outputs, inputs, seed=seed) / inputs**0.5
    made: Tensor | GroupedWeight = (
        quantize(weight, format=format, group=group) if format.startswith("int") else weight.to(getattr(torch, format))
    )
    return Projection(made, torch.randn(outputs, generator=torch.Generator().manual_seed(seed)) if bias else None)


def wide(projection: Projection) -> tuple[Tensor, Tensor | float]:
    weight = projection.weight
    dense = weight.dequantized() if isinstance(weight, GroupedWeight) else weight
    return dense.double(), 0.0 if projection.bias is None else projection.bias.double()


def exact_linear(x: Tensor, projection: Projection) -> Tensor:
    weight, bias = wide(projection)
    return x.double() @ weight.T + bias
