"""Merging partial attention must give the unsplit result, for any split and however extreme the scores."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from latentkv.errors import ShapeError
from latentkv.ops.merge import merge
from support.compare import assert_close
from support.reference import kv_reference

HEADS, WIDTH = 3, 5


def partial(query, key, value, first, stop):
    """Attention over context[first:stop] in float64, rounded to what a kernel returns."""
    piece = {"key": key[first:stop], "value": value[first:stop]}
    lengths = [(len(query), stop - first)]
    out, lse = kv_reference(query, [piece], lengths, groups=1, scale=1.0, causal=False)
    if first == stop:
        out = torch.full_like(out, torch.nan)  # a kernel that saw nothing may leave anything behind
    return out.float(), lse.float()


@st.composite
def split_contexts(draw):
    context = draw(st.integers(0, 20))
    cuts = sorted(draw(st.lists(st.integers(0, context), max_size=5)))
    return context, [0, *cuts, context], draw(st.integers(0, 5)), draw(st.sampled_from([0.1, 1.0, 30.0, 3000.0]))


@given(split_contexts())
def test_any_split_merges_to_the_whole(case):
    context, cuts, tokens, magnitude = case
    generator = torch.Generator().manual_seed(context)
    query = torch.randn(tokens, HEADS, WIDTH, generator=generator) * magnitude
    key, value = (torch.randn(context, WIDTH, generator=generator).double() for _ in range(2))
    pieces = [partial(query, key, value, first, stop) for first, stop in pairwise(cuts)]
    out, lse = merge([out for out, _ in pieces], [lse for _, lse in pieces])
    whole = [{"key": key, "value": value}]
    want_out, want_lse = kv_reference(query, whole, [(tokens, context)], groups=1, scale=1.0, causal=False)
    assert_close(lse, want_lse, tolerance="lse")
    if magnitude <= 30:  # beyond, rounding each piece's LSE to float32 is itself an error in the weights
        assert_close(out, want_out, tolerance="float32")


def test_a_zero_length_chunk_weighs_nothing_even_when_its_output_is_nan():
    out = torch.randn(2, HEADS, WIDTH)
    lse = torch.randn(2, HEADS)
    nothing = torch.full_like(out, torch.nan), torch.full_like(lse, -torch.inf)
    for order in [(0, 1), (1, 0)]:
        outs, lses = zip(*[[(out, lse), nothing][i] for i in order], strict=True)
        merged, merged_lse = merge(outs, lses)
        assert_close(merged, out, tolerance="exact")
        assert_close(merged_lse, lse, tolerance="exact")


def test_a_row_that_is_empty_everywhere_is_zero_and_minus_infinity():
    lse = torch.tensor([[0.0, -torch.inf]])
    merged, merged_lse = merge([torch.full((1, 2, 3), torch.nan).index_fill(1, torch.tensor([0]), 2.0)] * 2, [lse] * 2)
    assert merged.tolist() == [[[2.0] * 3, [0.0] * 3]]
    assert_close(merged_lse, torch.tensor([[2.0, 0.0]], dtype=torch.float64).log(), tolerance="lse")


@pytest.mark.parametrize("level", [-3e38, -1e4, 1e4, 3e38])
def test_huge_scores_neither_overflow_nor_vanish(level):
    outs = [torch.full((1, 1, 2), value) for value in (1.0, 3.0)]
    merged, lse = merge(outs, [torch.full((1, 1), level)] * 2)
    assert merged.tolist() == [[[2.0, 2.0]]]
    assert_close(lse, torch.full((1, 1), level, dtype=torch.float64) + 0.6931471805599453, tolerance="lse")


def test_a_nan_from_a_piece_that_saw_something_is_not_hidden():
    merged, _ = merge([torch.full((1, 1, 1), torch.nan), torch.ones(1, 1, 1)], [torch.zeros(1, 1)] * 2)
    assert merged.isnan().all()


def test_bfloat16_outputs_are_merged_in_float32_and_rounded_once():
    outs = [torch.full((1, 1, 1), value, dtype=torch.bfloat16) for value in (1.0, 1.0078125, 1.015625)]
    merged, _ = merge(outs, [torch.zeros(1, 1)] * 3)
    assert merged.dtype == torch.bfloat16
    assert merged.item() == 1.0078125


def test_pieces_that_do_not_fit_are_refused():
    out, lse = torch.zeros(2, 3, 4), torch.zeros(2, 3)
    with pytest.raises(ShapeError, match="outs and lses: expected one of each per piece, at least one, got 0 and 0"):
        merge([], [])
    with pytest.raises(ShapeError, match="got 2 and 1"):
        merge([out, out], [lse])
    with pytest.raises(ShapeError, match=r"outs\[1\]: expected \[2, 3, 4\] torch.float32, got \[2, 3, 5\]"):
        merge([out, torch.zeros(2, 3, 5)], [lse, lse])
    with pytest.raises(ShapeError, match=r"lses\[1\]: expected \[2, 3\], got \[3, 2\]"):
        merge([out, out], [lse, lse.T])
