"""Activations that are rounded, to whole numbers or to bfloat16: nothing else is, and batches change no row."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from latentkv.backends.isa import available_isas
from latentkv.backends.kernels import choose_kernels, native_kernels
from latentkv.ops.linear import InputNorm, Projection
from support.compare import assert_close
from support.hostile import strided_normal
from support.projections import FORMATS, exact_linear, make_projection, wide

ROWS = (0, 1, 2, 5, 6, 7, 13, 17)

every_kernels = pytest.mark.parametrize("name", ["portable", *(f"native:{isa}" for isa in available_isas())])
every_isa = pytest.mark.parametrize("isa", available_isas())


def rounded_to_127(x: Tensor, group: int, isa: str, format: str) -> Tensor:
    """[rows, groups]: what of each group becomes 127: the largest number or, where products of two int8 are added up in
    16 bits, the largest sum of two neighbours' sizes.
    """
    sizes = x.float().abs().unflatten(1, (-1, group))
    if format == "int8" and isa in ("avx2", "avx2w16", "avx2tile", "avx512"):
        sizes = sizes.unflatten(2, (-1, 2)).sum(-1)
    return sizes.amax(-1)


def rounded(x: Tensor, group: int, isa: str, format: str) -> Tensor:
    """x as the kernels see it: whole numbers times a scale for each group.

    The product with the factor, a float32, is rounded once, to a whole number: kernels add what rounds it in the same
    instruction. A float32 product in between would send numbers near a half the other way.
    """
    grouped = x.float().unflatten(1, (-1, group))
    most = rounded_to_127(x, group, isa, format)[..., None]
    # `127 / most` would be most.reciprocal() * 127, another number than the quotient.
    factor = torch.full_like(most, 127) / most
    codes = torch.where(most > 0, grouped.double() * factor.double(), 0).round()
    return (codes * (most / 127).double()).flatten(1)


@every_isa
@pytest.mark.parametrize("format", FORMATS[2:])
@pytest.mark.parametrize("group", [16, 32, 128])
def test_rounded_activations_err_by_their_rounding_and_nothing_else(isa: str, format: str, group: int) -> None:
    """Products of whole numbers are exact, so against the rounded x only float32's error remains."""
    kernels, plain = native_kernels(isa), native_kernels(isa, integer=False)
    for outputs, inputs in ((17, 128), (70, 384)):
        projection = make_projection(format, outputs, inputs, group=group)
        weight, _ = wide(projection)
        for rows in ROWS:
            x = strided_normal(rows, inputs)
            (got,) = kernels.linear_stack(x, [projection])
            if rows and torch.equal(got, plain.linear_stack(x, [projection])[0]):
                continue
            assert_close(got, rounded(x, group, isa, format) @ weight.T, tolerance="float32")


@every_isa
@pytest.mark.parametrize("format", FORMATS[2:])
@pytest.mark.parametrize("rows", [1, 9])
def test_the_error_of_rounded_activations_is_bounded(isa: str, format: str, rows: int) -> None:
    """|error| <= the sum over the groups of (what becomes 127) / 254 times the sum of |w|, as docs/linear.md says."""
    projection = make_projection(format, 33, 256)
    x = strided_normal(rows, 256)
    (got,) = native_kernels(isa).linear_stack(x, [projection])
    weight, _ = wide(projection)
    most = rounded_to_127(x, 32, isa, format).double()
    bound = most @ weight.abs().unflatten(1, (-1, 32)).sum(-1).T / 254
    assert ((got.double() - exact_linear(x, projection)).abs() <= bound + 1e-5).all()


@every_isa
@pytest.mark.parametrize("format", FORMATS[2:])
def test_activations_of_any_size_are_rounded_alike(isa: str, format: str) -> None:
    kernels, projection = native_kernels(isa), make_projection(format, 20, 64)
    x = strided_normal(2, 64)
    (once,), (scaled,) = (kernels.linear_stack(x * factor, [projection]) for factor in (1.0, 2.0**60))
    assert_close(scaled / 2.0**60, once, tolerance="float32")
    (none,) = kernels.linear_stack(torch.zeros(2, 64), [projection])
    assert not none.any()


# baseline rounds nothing; avx2tile, for tests alone, joins matrix tiles, which take int8, to words of int16.
@pytest.mark.parametrize("isa", [isa for isa in available_isas() if isa not in ("baseline", "avx2tile")])
@pytest.mark.parametrize("format", FORMATS[2:])
def test_a_row_rounded_to_whole_numbers_is_the_same_in_any_batch(isa: str, format: str) -> None:
    kernels, projection = native_kernels(isa), make_projection(format, 50, 1152)
    x = strided_normal(40, 1152)
    (many,) = kernels.linear_stack(x, [projection])
    for rows in (1, 2, 5, 9, 30):
        (fewer,) = kernels.linear_stack(x[:rows], [projection])
        assert_close(fewer, many[:rows], tolerance="exact")


@every_isa
@pytest.mark.parametrize("format", FORMATS)
def test_activations_in_bf16_are_rounded_and_then_multiplied_exactly(isa: str, format: str) -> None:
    kernels, plain = native_kernels(isa, integer=False, narrow=True), native_kernels(isa, integer=False)
    projections = [make_projection(format, 50, 640, seed=seed) for seed in (1, 2)]
    for rows in (1, 3, 5, 17, 40):
        x = strided_normal(rows, 640)
        x[0, 0] = 1.00390625  # Between two bf16: the even one
        taken = x.bfloat16().float()
        expected = plain.linear_stack(taken, projections)
        for got, exactly in zip(kernels.linear_stack(x, projections), expected, strict=True):
            assert_close(got, exactly, tolerance="exact")
        gated = kernels.linear_gated(x, *projections)
        assert_close(gated, plain.linear_gated(taken, *projections), tolerance="exact")
        grouped = kernels.linear_groups(x, (rows - 1, 1), projections)
        assert_close(grouped, plain.linear_groups(taken, (rows - 1, 1), projections), tolerance="exact")
    assert not kernels.fallbacks


@every_kernels
@pytest.mark.parametrize("format", FORMATS[:2])
def test_activations_in_bf16_are_rounded_behind_the_norm(name: str, format: str) -> None:
    kernels = choose_kernels(name, narrow=True)
    norm = InputNorm(torch.rand(96, generator=torch.Generator().manual_seed(1)) + 0.5, 0.0)
    projection = make_projection(format, 40, 96)
    for rows in (1, 4, 9):
        signs = strided_normal(rows, 96).sign()  # of root mean square 1, so that the norm itself rounds nothing
        (got,) = kernels.linear_stack(signs, [projection], norm=norm)
        taken = (signs * norm.weight).bfloat16().float()
        assert_close(got, exact_linear(taken, projection), tolerance="float32")


@every_isa
@pytest.mark.parametrize("format", FORMATS)
def test_a_row_in_bf16_does_not_depend_on_its_neighbours_beyond_the_path(isa: str, format: str) -> None:
    kernels, projection = native_kernels(isa, integer=False, narrow=True), make_projection(format, 50, 128)
    x = strided_normal(40, 128)
    (many,) = kernels.linear_stack(x, [projection])
    (fewer,) = kernels.linear_stack(x[:26], [projection])
    assert_close(many[:26], fewer, tolerance="exact")


def test_the_reference_rounds_activations_too_where_it_stands_in() -> None:
    kernels, x = native_kernels(narrow=True), torch.randn(3, 16)
    half = Projection(torch.randn(8, 16).half())
    expected = half(x.bfloat16().float())
    assert_close(kernels.linear_stack(x, [half])[0], expected, tolerance="exact")
    assert_close(kernels.linear_groups(x, (3,), [half]), expected, tolerance="exact")
    assert sum(kernels.fallbacks.values()) == 2
