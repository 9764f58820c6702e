"""The three forms of attention on dense tensors, against the float64 reference and against each other."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from latentkv.errors import ShapeError
from latentkv.ops.absorb import UpProjection, absorb_query, expand_latent, expand_output
from latentkv.ops.attention import attend_head, attend_kv, attend_latent, masked_softmax
from support.compare import assert_close
from support.reference import kv_reference, mla_reference


@st.composite
def mla_sizes(draw):
    """(heads, L, rope_groups, Rq, N, V, new, context, causal), small and awkward, N and R not both 0."""
    groups = draw(st.integers(1, 3))
    nope, query_rope = draw(st.tuples(st.integers(0, 5), st.integers(0, 4)).filter(any))
    context = draw(st.integers(1, 12))
    new = draw(st.integers(0, context))
    heads = groups * draw(st.integers(1, 3))
    return (
        heads,
        draw(st.integers(1, 9)),
        groups if query_rope else 1,
        query_rope,
        nope,
        draw(st.integers(1, 5)),
        new,
        context,
        draw(st.booleans()),
    )


@given(mla_sizes())
def test_latent_and_head_form_are_the_papers_attention(sizes):
    heads, rank, groups, query_rope, nope, value, new, context, causal = sizes
    generator = torch.Generator().manual_seed(heads * 1000 + context)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    query, latent, rope = (
        normal(new, heads, nope + query_rope),
        normal(context, rank),
        normal(context, groups * query_rope),
    )
    up = UpProjection(normal(heads, nope, rank) * rank**-0.5, normal(heads, value, rank) * rank**-0.5)
    scale = (nope + query_rope) ** -0.5
    rows = {"latent": latent.double(), "rope": rope.double()}
    want_out, want_lse = mla_reference(
        query,
        [rows],
        [(new, context)],
        w_uk=up.w_uk,
        w_uv=up.w_uv,
        scale=scale,
        causal=causal,
        rope_groups=groups,
    )
    q_nope, q_rope = query[..., :nope], query[..., nope:]
    first_visible = context - new + 1 if causal else None
    head_out, head_lse = attend_head(q_nope, q_rope, latent, rope, up, scale=scale, first_visible=first_visible)
    q_latent = absorb_query(q_nope, up.w_uk) if nope else None
    o_latent, lse = attend_latent(q_latent, q_rope, latent, rope, scale=scale, first_visible=first_visible)
    for got_out, got_lse in [(head_out, head_lse), (expand_output(o_latent, up.w_uv), lse)]:
        assert_close(got_out, want_out, tolerance="float32")
        assert_close(got_lse, want_lse, tolerance="lse")


@pytest.mark.parametrize(("heads", "groups"), [(1, 1), (6, 1), (6, 2), (6, 6)])
@pytest.mark.parametrize(("new", "context"), [(1, 1), (1, 9), (9, 9), (4, 9), (0, 3)])
def test_grouped_query_attention(heads, groups, new, context):
    generator = torch.Generator().manual_seed(1)
    query, key, value = (
        torch.randn(shape, generator=generator)
        for shape in [(new, heads, 5), (context, groups, 5), (context, groups, 7)]
    )
    out, lse = attend_kv(query, key, value, scale=0.4, first_visible=context - new + 1)
    rows = {"key": key.flatten(1).double(), "value": value.flatten(1).double()}
    want_out, want_lse = kv_reference(query, [rows], [(new, context)], groups=groups, scale=0.4)
    assert_close(out, want_out, tolerance="float32")
    assert_close(lse, want_lse, tolerance="lse")


def test_a_row_that_sees_nothing_is_zero_and_minus_infinity():
    """New tokens before the context's start see nothing: the first of three, with one context token fewer."""
    latent, rope = torch.ones(2, 4), torch.ones(2, 2)
    query = torch.ones(3, 2, 4), torch.ones(3, 2, 2)
    out, lse = attend_latent(*query, latent, rope, scale=1.0, first_visible=0)
    assert out[0].tolist() == [[0.0] * 4] * 2
    assert lse[0].tolist() == [-torch.inf] * 2
    assert out[1:].tolist() == [[[1.0] * 4] * 2] * 2


def test_an_empty_context_is_zero_and_minus_infinity():
    out, lse = attend_latent(
        torch.ones(2, 3, 4), torch.ones(2, 3, 2), torch.ones(0, 4), torch.ones(0, 2), scale=1.0, first_visible=None
    )
    assert_close(out, torch.zeros(2, 3, 4), tolerance="exact")
    assert_close(lse, torch.full((2, 3), -torch.inf), tolerance="exact")


@pytest.mark.parametrize("level", [1e4, -1e4, 3e38])
def test_softmax_of_large_scores_keeps_its_precision(level):
    weights, lse = masked_softmax(torch.full((1, 1, 4), level), first_visible=None)
    assert weights.tolist() == [[[0.25] * 4]]
    assert_close(lse, torch.full((1, 1), level, dtype=torch.float64) + 1.3862943611198906, tolerance="lse")


def test_kv_b_proj_is_split_per_head_without_a_copy():
    heads, nope, value, rank = 3, 2, 4, 5
    weight = torch.randn(heads * (nope + value), rank)
    up = UpProjection.from_kv_b_proj(weight, num_heads=heads, qk_nope_head_dim=nope)
    assert up.w_uk.data_ptr() == weight.data_ptr()
    rows = weight.view(heads, nope + value, rank)
    assert_close(up.w_uk, rows[:, :nope], tolerance="exact")
    assert_close(up.w_uv, rows[:, nope:], tolerance="exact")
    latent = torch.randn(7, rank)
    k_nope, v = expand_latent(latent, up)
    expanded = latent.double() @ weight.double().T
    both = torch.cat([k_nope, v], dim=2).transpose(0, 1).flatten(1)
    assert_close(both, expanded, tolerance="float32")


@pytest.mark.parametrize("shape", [(17, 5), (18, 5, 1), (3, 5)])
def test_a_kv_b_proj_of_the_wrong_shape_is_told(shape):
    with pytest.raises(ShapeError, match=r"kv_b_proj.weight: expected \[H\*\(N\+V\), L\], got \["):
        UpProjection.from_kv_b_proj(torch.zeros(shape), num_heads=3, qk_nope_head_dim=2)
