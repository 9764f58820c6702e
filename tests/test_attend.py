"""What `attend` refuses, and that the message names the argument, what was expected and what was found."""

from __future__ import annotations

import pytest
import torch

from latentkv.attend import attend, plan_attend, request_for
from latentkv.cache.layout import kv_row, mla_row
from latentkv.errors import OptionError, ShapeError, StalePlanError
from latentkv.ops.absorb import UpProjection
from support.hostile import hostile_case

H, L, R, N, V, T = 4, 8, 6, 5, 3, 2
UP = UpProjection(torch.ones(H, N, L), torch.ones(H, V, L))


def call(query, *, row=None, **options):
    case = hostile_case(row or mla_row("f32", kv_lora_rank=L, qk_rope_head_dim=R), [(T, 5)], page_tokens=4)
    return attend(query, case.layer, case.batch, scale=1.0, **options)


@pytest.mark.parametrize(
    ("query", "options", "message"),
    [
        (torch.ones(T, N + R), {"up": UP}, r"query: expected \[2, H, width\], got \[2, 11\]"),
        (torch.ones(T + 1, H, N + R), {"up": UP}, r"query: expected \[2, H, width\], got \[3, 4, 11\]"),
        (torch.ones(T, H, N + R).half(), {"up": UP}, "query dtype: expected float32 or bfloat16, got torch.float16"),
        (torch.ones(T, H, N + R + 1), {"up": UP}, r"query: expected \[T, H, N\+R\] = \[T, 4, 5\+6\], got \[T, 4, 12\]"),
        (torch.ones(T, H, N), {"up": UP}, r"query: expected \[T, H, N\+R\] = \[T, 4, 5\+6\], got \[T, 4, 5\]"),
        (torch.ones(T, H, N - 1), {"up": UP}, r"query: .* got \[T, 4, 4\]"),
        (torch.ones(T, H, L + R + 1), {}, r"query: expected \[T, H, L\+R\] = \[T, 4, 8\+6\], got \[T, 4, 15\]"),
        (torch.ones(T, H + 1, N + R), {"up": UP}, r"up.w_uk: expected \[5, ..., 8\], got \[4, 5, 8\]"),
        (
            torch.ones(T, H, N + R),
            {"up": UpProjection(UP.w_uk, torch.ones(H, V, L + 1))},
            r"up.w_uv: expected \[4, ..., 8\], got \[4, 3, 9\]",
        ),
        (torch.ones(T, H, L + R), {"form": "head"}, "up: expected an up-projection for the head form, got None"),
    ],
)
def test_an_mla_query_that_does_not_fit_is_told(query, options, message):
    with pytest.raises(ShapeError, match=message):
        call(query, **options)


@pytest.mark.parametrize("extra", [1, 5])
def test_a_rope_part_for_a_cache_without_one_is_told(extra):
    row = mla_row("f32", kv_lora_rank=L, qk_rope_head_dim=0)
    with pytest.raises(ShapeError, match=r"query: expected \[T, H, N\+R\] = \[T, 4, 5\+0\]"):
        call(torch.ones(T, H, N + extra), row=row, up=UP)


@pytest.mark.parametrize(
    ("query", "options", "message"),
    [
        (
            torch.ones(T, H, 4),
            {"up": UP},
            "up and form: expected None and 'auto' for key/value rows, got an up-projection and 'auto'",
        ),
        (torch.ones(T, H, 4), {"form": "latent"}, "up and form: expected None and 'auto' for key/value rows"),
        (torch.ones(T, H, 5), {}, r"query: expected \[T, H, D\] with G\*D == 8, .* got \[T, 4, 5\]"),
        (torch.ones(T, 3, 4), {}, r"query: expected \[T, H, D\] with .* H a multiple of G, got \[T, 3, 4\]"),
        (torch.ones(T, H, 2), {}, r"query: .* got \[T, 4, 2\]"),
    ],
)
def test_a_query_that_does_not_fit_key_value_rows_is_told(query, options, message):
    row = kv_row("f32", num_key_value_heads=2, head_dim=4, v_head_dim=3)
    with pytest.raises(ShapeError, match=message):
        call(query, row=row, **options)


def test_unknown_names_are_told_with_the_known_ones():
    query = torch.ones(T, H, N + R)
    with pytest.raises(OptionError, match="form: expected one of auto, latent, head, got 'mha'"):
        call(query, up=UP, form="mha")
    with pytest.raises(OptionError, match=r"backend: expected auto or one of .*portable.*, got 'cuda'"):
        call(query, up=UP, backend="cuda")


def test_a_batch_for_another_page_size_is_told():
    row = mla_row("f32", kv_lora_rank=L, qk_rope_head_dim=R)
    small, large = (hostile_case(row, [(T, 5)], page_tokens=page) for page in (4, 8))
    with pytest.raises(ShapeError, match="batch page_tokens: expected the cache's 8, got 4"):
        attend(torch.ones(T, H, N + R), large.layer, small.batch, scale=1.0, up=UP)


def test_options_are_keyword_only():
    case = hostile_case(mla_row("f32", kv_lora_rank=L, qk_rope_head_dim=R), [(T, 5)], page_tokens=4)
    with pytest.raises(TypeError):
        attend(torch.ones(T, H, N + R), case.layer, case.batch, 1.0, UP)


def test_a_plan_serves_only_the_request_and_backend_it_was_made_for() -> None:
    row = mla_row("f32", kv_lora_rank=8, qk_rope_head_dim=4)
    case = hostile_case(row, [(1, 5)], page_tokens=4)
    query = torch.randn(1, 2, 12)
    plan = plan_attend(request_for(query, case.layer, case.batch), case.batch, backend="portable")
    assert attend(query, case.layer, case.batch, scale=1.0, plan=plan).path.startswith("portable")
    with pytest.raises(StalePlanError, match="made for Request"):
        attend(torch.randn(1, 4, 12), case.layer, case.batch, scale=1.0, plan=plan)
    with pytest.raises(OptionError, match="the plan's portable"):
        attend(query, case.layer, case.batch, scale=1.0, plan=plan, backend="bogus")


@pytest.mark.parametrize("scale", [float("nan"), float("inf")])
def test_a_scale_that_is_no_number_is_refused(scale: float) -> None:
    row = mla_row("f32", kv_lora_rank=8, qk_rope_head_dim=4)
    case = hostile_case(row, [(1, 5)], page_tokens=4)
    with pytest.raises(OptionError, match="finite"):
        attend(torch.randn(1, 2, 12), case.layer, case.batch, scale=scale)
