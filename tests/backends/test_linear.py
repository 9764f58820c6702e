"""Linear maps of every instruction set against float64: any rows, any widths, every format."""

from __future__ import annotations

import pytest
import torch

from latentkv.backends.isa import available_isas
from latentkv.backends.kernels import Kernels, choose_kernels, native_kernels
from latentkv.errors import ShapeError
from latentkv.ops.linear import InputNorm, Projection
from latentkv.ops.quantized import GroupedWeight
from support.compare import assert_close
from support.hostile import strided_normal
from support.projections import FORMATS, exact_linear, make_projection, wide

FLOATS = (torch.float32, torch.bfloat16)
NAMES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}
ROWS = (0, 1, 2, 3, 4, 5, 6, 7, 13, 16, 17, 48, 49)
# Outputs and inputs at every boundary of vectors, panels and steps of the kernels.
SHAPES = ((1, 1), (3, 7), (16, 32), (33, 65), (65, 259), (130, 600), (30, 2801))
GROUPED_SHAPES = ((1, 16), (17, 64), (70, 384))

every_kernels = pytest.mark.parametrize("name", ["portable", *(f"native:{isa}" for isa in available_isas())])
every_isa = pytest.mark.parametrize("isa", available_isas())


def exact(name: str) -> Kernels:
    """Kernels that round no activations."""
    return native_kernels(name.removeprefix("native:"), integer=False) if name != "portable" else choose_kernels(name)


@every_kernels
@pytest.mark.parametrize("format", FORMATS[:2])
def test_float_weights(name: str, format: str) -> None:
    kernels = exact(name)
    for outputs, inputs in SHAPES:
        projection = make_projection(format, outputs, inputs, bias=outputs % 2 == 1)
        for rows in ROWS:
            x = strided_normal(rows, inputs)
            (got,) = kernels.linear_stack(x, [projection])
            assert_close(got, exact_linear(x, projection), tolerance="float32")
    assert not kernels.fallbacks


@every_kernels
@pytest.mark.parametrize("format", FORMATS[2:])
@pytest.mark.parametrize("group", [16, 32, 64, 128])
def test_grouped_weights(name: str, format: str, group: int) -> None:
    kernels = exact(name)
    for outputs, inputs in GROUPED_SHAPES:
        projection = make_projection(format, outputs, inputs * group // 16, group=group, bias=outputs % 2 == 1)
        for rows in ROWS:
            x = strided_normal(rows, projection.weight.shape[1])
            (got,) = kernels.linear_stack(x, [projection])
            assert_close(got, exact_linear(x, projection), tolerance="float32")
    assert not kernels.fallbacks


@every_isa
@pytest.mark.parametrize("format", FORMATS[2:])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_scales_of_every_dtype_and_zero_points(isa: str, format: str, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(3)
    codes = torch.randint(0, 16, (37, 96), generator=generator)
    scales = (torch.randn(37, 3, generator=generator) * 0.02).to(dtype)
    scales[0] = 6e-8 if dtype is torch.float16 else 1e-30
    zero = 8 if format == "int4" else 0
    projection = Projection(GroupedWeight.pack(codes, scales, format=format, zero=zero))
    for rows in (1, 5):
        x = strided_normal(rows, 96)
        (got,) = exact(isa).linear_stack(x, [projection])
        assert_close(got, exact_linear(x, projection), tolerance="float32")


@every_kernels
@pytest.mark.parametrize("format", FORMATS)
def test_bfloat16_activations_are_rounded_once(name: str, format: str) -> None:
    if name == "portable" and format != "bfloat16":
        pytest.skip("the reference converts the weight to the activations' dtype")
    kernels, projection = exact(name), make_projection(format, 48, 320)
    for rows in (1, 3, 40):
        x = strided_normal(rows, 320, dtype=torch.bfloat16)
        (got,) = kernels.linear_stack(x, [projection])
        assert_close(got, exact_linear(x, projection), tolerance="bfloat16")


@every_isa
@pytest.mark.parametrize("integer", [False, True])
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_nan_and_infinity_stay_in_their_row_and_are_never_lost(
    isa: str, integer: bool, format: str, bad: float
) -> None:
    kernels, projection = native_kernels(isa, integer=integer), make_projection(format, 20, 64)
    for rows in (3, 8):
        x = strided_normal(rows, 64)
        x[1, 63] = bad
        (got,) = kernels.linear_stack(x, [projection])
        assert not got[1].isfinite().any()
        assert got[torch.arange(rows) != 1].isfinite().all()


@every_isa
@pytest.mark.parametrize("format", FORMATS[2:])
@pytest.mark.parametrize("rows", [1, 2, 3, 4])
def test_nan_and_infinity_in_few_rows_are_what_floats_give(isa: str, format: str, rows: int) -> None:
    projection = make_projection(format, 20, 64)
    for bad in (torch.nan, torch.inf, -torch.inf):
        x = strided_normal(rows, 64)
        x[rows - 1, 5] = bad
        (got,) = exact(isa).linear_stack(x, [projection])
        assert_close(got, exact_linear(x, projection), tolerance="float32")
        x[rows - 1, 40] = -torch.inf
        (got,) = exact(isa).linear_stack(x, [projection])
        assert_close(got, exact_linear(x, projection), tolerance="float32")


@every_isa
@pytest.mark.parametrize("format", FORMATS[2:])
@pytest.mark.parametrize("rows", [1, 2, 4])
def test_exact_activations_lose_no_more_than_floats(isa: str, format: str, rows: int) -> None:
    """|error| <= the sum over the groups of largest |x| times the sum of |w|, times what is lost of it.

    Terms leave 1.3e-7 of the largest |x|. u = 2**-24 of float32 comes in three times when a group is scaled, once for
    each of 8 groups: 7.9e-7 in all, below 2**-20.
    """
    projection = make_projection(format, 33, 256)
    weight, _ = wide(projection)
    for factors in ((1e30, 1e-30), (1.0, 1e-6), (1e-38, 1e-42), (0.0, 1.0), (1e37, 0.0)):
        x = strided_normal(rows, 256).clamp(-1, 1) * torch.tensor(factors).repeat_interleave(128)
        (got,) = exact(isa).linear_stack(x, [projection])
        largest = x.double().unflatten(1, (-1, 32)).abs().amax(-1)
        bound = largest @ weight.abs().unflatten(1, (-1, 32)).sum(-1).T * 2**-20
        assert ((got.double() - exact_linear(x, projection)).abs() <= bound + 1e-40).all()


@every_kernels
@pytest.mark.parametrize("format", FORMATS)
def test_several_maps_of_one_input_with_norm_residual_and_factor(name: str, format: str) -> None:
    kernels = exact(name)
    projections = [make_projection(format, outputs, 96, seed=outputs, bias=outputs == 40) for outputs in (40, 8, 33)]
    norm = InputNorm(torch.rand(96) + 0.5, 1e-6)
    for rows in (0, 1, 3, 9):
        x = strided_normal(rows, 96)
        normed = x.double() / (x.double().square().mean(-1, keepdim=True) + 1e-6).sqrt() * norm.weight.double()
        for got, projection in zip(kernels.linear_stack(x, projections, norm=norm), projections, strict=True):
            assert_close(got, exact_linear(normed, projection), tolerance="float32")
        residual = strided_normal(rows, 40, seed=5)
        (got,) = kernels.linear_stack(x, projections[:1], residual=residual, factor=0.5)
        expected = 0.5 * exact_linear(x, projections[0]) + residual.double()
        assert_close(got, expected, tolerance="float32")
    assert not kernels.fallbacks


@every_kernels
@pytest.mark.parametrize("format", FORMATS)
def test_gate_and_up(name: str, format: str) -> None:
    kernels = exact(name)
    gate, up = make_projection(format, 70, 96, seed=1, bias=True), make_projection(format, 70, 96, seed=2)
    for rows in (0, 1, 4, 11):
        x = strided_normal(rows, 96) * 4
        expected = torch.nn.functional.silu(exact_linear(x, gate)) * exact_linear(x, up)
        assert_close(kernels.linear_gated(x, gate, up) / 16, expected / 16, tolerance="float32")
    assert not kernels.fallbacks


@every_isa
def test_silu_at_both_ends(isa: str) -> None:
    one = Projection(torch.ones(1, 1))
    x = torch.tensor([-1e4, -104.0, -88.0, -1.0, -0.0, 0.0, 1.0, 88.0, 1e4])[:, None]
    got = native_kernels(isa).linear_gated(x, one, one)
    assert_close(got, torch.nn.functional.silu(x.double()) * x.double(), tolerance="float32")


@every_isa
def test_gate_and_up_of_different_formats_are_computed_one_by_one(isa: str) -> None:
    kernels = exact(isa)
    gate, up = make_projection("int8", 33, 64), make_projection("int4", 33, 64)
    x = strided_normal(2, 64)
    expected = torch.nn.functional.silu(exact_linear(x, gate)) * exact_linear(x, up)
    assert_close(kernels.linear_gated(x, gate, up), expected, tolerance="float32")
    assert list(kernels.fallbacks) == ["linear_gated: gate: another format than the weight"]


@every_kernels
@pytest.mark.parametrize("format", FORMATS)
def test_tokens_sorted_by_expert(name: str, format: str) -> None:
    kernels, counts = exact(name), (3, 0, 1, 8, 0)
    projections = [make_projection(format, 40, 64, seed=seed) for seed in range(5)]
    gates = [make_projection(format, 40, 64, seed=seed + 9) for seed in range(5)]
    x = strided_normal(12, 64)
    pieces = list(zip(torch.split(x, counts), projections, gates, strict=True))
    plain = torch.cat([exact_linear(rows, projection) for rows, projection, _ in pieces])
    assert_close(kernels.linear_groups(x, counts, projections), plain, tolerance="float32")
    gated = torch.cat([torch.nn.functional.silu(exact_linear(rows, gate)) for rows, _, gate in pieces]) * plain
    assert_close(kernels.linear_groups(x, counts, projections, gates=gates), gated, tolerance="float32")
    assert not kernels.fallbacks


@every_isa
def test_experts_without_tokens_are_not_touched(isa: str) -> None:
    projections = [make_projection("float32", 8, 16), Projection(torch.empty(8, 16, device="meta"))]
    kernels = native_kernels(isa)
    assert kernels.linear_groups(torch.randn(1, 16), (1, 0), projections).shape == (1, 8)
    assert not kernels.fallbacks


@every_isa
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("rows", [1, 3, 30, 70, 800])
def test_two_threads_compute_what_one_does(isa: str, format: str, rows: int, two_threads: None) -> None:
    kernels, x = native_kernels(isa), strided_normal(rows, 640)
    projection = make_projection(format, 301, 640)
    (got,) = kernels.linear_stack(x, [projection])
    torch.set_num_threads(1)
    (alone,) = kernels.linear_stack(x, [projection])
    assert_close(got, alone, tolerance="exact")


@every_isa
@pytest.mark.parametrize("format", FORMATS)
def test_a_row_does_not_depend_on_its_neighbours_beyond_the_path(isa: str, format: str) -> None:
    kernels, projection = native_kernels(isa), make_projection(format, 50, 128)
    x = strided_normal(10, 128)
    (many,) = kernels.linear_stack(x, [projection])
    (fewer,) = kernels.linear_stack(x[:7], [projection])
    assert_close(many[:7], fewer, tolerance="exact")


@every_isa
def test_leading_dimensions_and_odd_strides(isa: str) -> None:
    kernels, projection = native_kernels(isa), make_projection("float32", 12, 24)
    x = torch.randn(2, 3, 24)
    (got,) = kernels.linear_stack(x, [projection])
    assert_close(got, exact_linear(x, projection), tolerance="float32")
    (one,) = kernels.linear_stack(x[0, 0], [projection])
    assert_close(one, exact_linear(x[0, 0], projection), tolerance="float32")
    (expanded,) = kernels.linear_stack(x[0, :1].expand(6, 24), [projection])
    assert_close(expanded, exact_linear(x[0, :1].expand(6, 24), projection), tolerance="float32")
    assert not kernels.fallbacks


def test_what_kernels_cannot_take_goes_to_the_reference_and_is_counted() -> None:
    kernels, x = choose_kernels("native"), torch.randn(2, 16)
    half = Projection(torch.randn(8, 16).half())
    assert_close(kernels.linear_stack(x, [half])[0], half(x), tolerance="exact")
    leaf = x.clone().requires_grad_()
    assert kernels.linear_stack(leaf, [make_projection("float32", 8, 16)])[0].requires_grad
    trained = Projection(torch.randn(8, 16, requires_grad=True))
    assert kernels.linear_gated(x, trained, trained).requires_grad
    assert kernels.linear_groups(x, (2,), [half]).shape == (2, 8)
    assert sorted(kernels.fallbacks.elements()) == [
        "linear_gated: gradients are wanted",
        "linear_groups: weight: no native kernel for this dtype",
        "linear_stack: gradients are wanted",
        "linear_stack: gradients are wanted",
        "linear_stack: weight: no native kernel for this dtype",
    ]


@every_isa
def test_shapes_that_do_not_fit_are_refused(isa: str) -> None:
    kernels, projection = native_kernels(isa), make_projection("float32", 8, 16)
    with pytest.raises(ShapeError, match="inputs: expected 16, got 17"):
        kernels.linear_stack(torch.randn(2, 17), [projection])
    with pytest.raises(ShapeError, match="rows of x: expected 1, got 2"):
        kernels.linear_groups(torch.randn(2, 16), (1,), [projection])
    with pytest.raises(ShapeError, match="counts"):
        kernels.linear_groups(torch.randn(2, 16), (3,), [projection])
    with pytest.raises(ShapeError, match="norm: expected 16, got 15"):
        kernels.linear_stack(torch.randn(2, 16), [projection], norm=InputNorm(torch.ones(15), 1e-6))
    with pytest.raises(ShapeError, match="rows of the residual: expected 2, got 1"):
        kernels.linear_stack(torch.randn(2, 16), [projection], residual=torch.randn(1, 8))
    with pytest.raises(ShapeError, match="outputs of the gate: expected 8, got 9"):
        kernels.linear_gated(torch.randn(2, 16), make_projection("float32", 9, 16), projection)
    with pytest.raises(ShapeError, match="bias: expected 8, got 7"):
        kernels.linear_stack(torch.randn(2, 16), [Projection(torch.randn(8, 16), torch.randn(7))])
