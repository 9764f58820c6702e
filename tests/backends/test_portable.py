"""The portable backend through `attend`, over poisoned caches, against the float64 reference of the paper."""

from __future__ import annotations

import pytest
import torch

from latentkv.attend import attend, plan_attend, request_for
from latentkv.backends import portable, registry
from latentkv.cache.layout import FORMATS, PAGE_TOKENS, kv_row
from latentkv.errors import StalePlanError
from latentkv.ops.absorb import UpProjection
from support.compare import assert_close
from support.hostile import Hostile, awkward_lengths, hostile_case, strided_normal
from support.mla_sizes import MLASizes
from support.reference import absorbed_reference, kv_reference, mla_reference

MODES = ["decode", "prefill", "chunk", "mix", "empty"]


@pytest.fixture(autouse=True)
def portable_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "BACKENDS", (portable.PortableBackend(),))


SIZES = {
    "usual": MLASizes(H=16, L=24, R=8, N=12, V=10),
    "one_head_odd": MLASizes(H=1, L=7, R=3, N=5, V=2),
    "no_rope": MLASizes(H=3, L=9, R=0, N=4, V=6),
    "no_nope": MLASizes(H=20, L=8, R=6, N=0, V=5),
    "converted_gqa": MLASizes(H=40, L=12, R=16, N=0, V=3, groups=4),
    "grouped_with_nope": MLASizes(H=6, L=5, R=6, N=4, V=4, groups=3),
}


def mla_case(sizes: MLASizes, mode: str, *, page_tokens: int = 4, format: str = "f32", seed: int = 0) -> Hostile:
    row = sizes.row(format)
    return hostile_case(row, awkward_lengths(page_tokens)[mode], page_tokens=page_tokens, seed=seed)


def assert_is_mla(attended, sizes: MLASizes, case: Hostile, query, up, *, causal: bool = True, tolerance="float32"):
    out, lse = mla_reference(
        query,
        case.contexts,
        case.lengths,
        w_uk=up.w_uk,
        w_uv=up.w_uv,
        scale=sizes.scale,
        causal=causal,
        rope_groups=sizes.groups,
    )
    assert_close(attended.lse, lse, tolerance="lse")
    assert_close(attended.out, out, tolerance=tolerance)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("form", ["latent", "head", "auto"])
@pytest.mark.parametrize("name", SIZES)
def test_mla_is_the_papers(name, form, mode, causal):
    sizes = SIZES[name]
    case = mla_case(sizes, mode)
    query, up = sizes.query(case), sizes.up()
    attended = attend(query, case.layer, case.batch, scale=sizes.scale, up=up, form=form, causal=causal)
    assert_is_mla(attended, sizes, case, query, up, causal=causal)


@pytest.mark.parametrize("page_tokens", PAGE_TOKENS)
@pytest.mark.parametrize("form", ["latent", "head"])
def test_every_page_size(page_tokens, form):
    sizes = SIZES["grouped_with_nope"]
    case = mla_case(sizes, "mix", page_tokens=page_tokens)
    query, up = sizes.query(case), sizes.up()
    attended = attend(query, case.layer, case.batch, scale=sizes.scale, up=up, form=form)
    assert_is_mla(attended, sizes, case, query, up)


@pytest.mark.parametrize("mode", ["decode", "mix"])
@pytest.mark.parametrize("name", SIZES)
def test_absorbed_queries_give_latent_outputs(name, mode):
    sizes = SIZES[name]
    case = mla_case(sizes, mode)
    query = strided_normal(case.batch.num_tokens, sizes.H, sizes.L + sizes.query_rope, seed=13)
    scale = (sizes.L + sizes.query_rope) ** -0.5
    attended = attend(query, case.layer, case.batch, scale=scale)
    out, lse = absorbed_reference(query, case.contexts, case.lengths, scale=scale, rope_groups=sizes.groups)
    assert_close(attended.out, out, tolerance="float32")
    assert_close(attended.lse, lse, tolerance="lse")


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("heads", "groups"), [(6, 1), (6, 3), (6, 6), (1, 1), (20, 4)])
def test_grouped_query_attention(heads, groups, mode, causal):
    row = kv_row("f32", num_key_value_heads=groups, head_dim=5, v_head_dim=7)
    case = hostile_case(row, awkward_lengths(4)[mode], page_tokens=4)
    query = strided_normal(case.batch.num_tokens, heads, 5, seed=17)
    attended = attend(query, case.layer, case.batch, scale=5**-0.5, causal=causal)
    out, lse = kv_reference(query, case.contexts, case.lengths, groups=groups, scale=5**-0.5, causal=causal)
    assert_close(attended.out, out, tolerance="float32")
    assert_close(attended.lse, lse, tolerance="lse")
    assert attended.path == "portable:kv"


@pytest.mark.parametrize("form", ["latent", "head"])
@pytest.mark.parametrize("query_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("format", [name for name in FORMATS if name != "f32"])
def test_compact_caches_and_queries_round_nothing_but_the_output(format, form, query_dtype):
    sizes = SIZES["usual"]
    case = mla_case(sizes, "mix", format=format)
    query, up = sizes.query(case, query_dtype), sizes.up()
    up = UpProjection(up.w_uk.bfloat16(), up.w_uv.bfloat16())
    attended = attend(query, case.layer, case.batch, scale=sizes.scale, up=up, form=form)
    assert_is_mla(attended, sizes, case, query, up, tolerance=str(query_dtype).removeprefix("torch."))


@pytest.mark.parametrize("format", ["fp8", "int8", "int6", "int4"])
def test_keys_and_values_of_codes(format):
    row = kv_row(format, num_key_value_heads=3, head_dim=5, v_head_dim=7)
    case = hostile_case(row, awkward_lengths(4)["mix"], page_tokens=4)
    query = strided_normal(case.batch.num_tokens, 6, 5, seed=17)
    attended = attend(query, case.layer, case.batch, scale=5**-0.5)
    out, _ = kv_reference(query, case.contexts, case.lengths, groups=3, scale=5**-0.5)
    assert_close(attended.out, out, tolerance="float32")


def test_large_scores_neither_overflow_nor_lose_the_largest():
    sizes = SIZES["usual"]
    case = mla_case(sizes, "mix")
    query, up = sizes.query(case), sizes.up()
    for form in ("latent", "head"):
        attended = attend(query * 1e4, case.layer, case.batch, scale=sizes.scale, up=up, form=form)
        assert attended.out.isfinite().all()
        assert attended.lse.isfinite().all()


@pytest.mark.parametrize("form", ["latent", "head"])
def test_a_long_prompt_is_tiled_without_changing_the_result(form, monkeypatch):
    sizes = SIZES["one_head_odd"]
    case = mla_case(sizes, "mix", page_tokens=16)
    query, up = sizes.query(case), sizes.up()
    monkeypatch.setattr(portable, "TILE_SCORES", 70)
    attended = attend(query, case.layer, case.batch, scale=sizes.scale, up=up, form=form)
    assert_is_mla(attended, sizes, case, query, up)


@pytest.mark.parametrize("form", ["latent", "head", "auto"])
def test_a_sequence_alone_and_in_a_batch_gives_the_same_bits(form):
    sizes = SIZES["usual"]
    case = mla_case(sizes, "mix")
    query, up = sizes.query(case), sizes.up()
    together = attend(query, case.layer, case.batch, scale=sizes.scale, up=up, form=form)
    first = 0
    for index, (new, context) in enumerate(case.lengths):
        pages = case.batch.page_table[index, : -(-context // 4)].tolist()
        alone = type(case.batch).build(query_lens=[new], context_lens=[context], pages=[pages], page_tokens=4)
        rows = slice(first, first + new)
        single = attend(query[rows], case.layer, alone, scale=sizes.scale, up=up, form=form)
        assert_close(single.out, together.out[rows], tolerance="exact")
        assert_close(single.lse, together.lse[rows], tolerance="exact")
        first += new


@pytest.mark.parametrize("form", ["latent", "head"])
def test_chunks_of_a_prompt_give_what_the_whole_prompt_gives(form):
    sizes = SIZES["usual"]
    row = sizes.row()
    case = hostile_case(row, [(13, 13)], page_tokens=4)
    query, up = sizes.query(case), sizes.up()
    whole, _ = mla_reference(query, case.contexts, case.lengths, w_uk=up.w_uk, w_uv=up.w_uv, scale=sizes.scale)
    pages = [case.batch.page_table[0, :4].tolist()]
    for first, stop in [(0, 1), (1, 4), (4, 4), (4, 9), (9, 13)]:
        chunk = type(case.batch).build(query_lens=[stop - first], context_lens=[stop], pages=pages, page_tokens=4)
        part = attend(query[first:stop], case.layer, chunk, scale=sizes.scale, up=up, form=form)
        assert_close(part.out, whole[first:stop], tolerance="float32")


def test_no_sequences_at_all():
    sizes = SIZES["usual"]
    case = hostile_case(sizes.row(), [], page_tokens=4)
    attended = attend(sizes.query(case), case.layer, case.batch, scale=1.0, up=sizes.up())
    assert attended.out.shape == (0, sizes.H, sizes.V)
    assert attended.lse.shape == (0, sizes.H)


def test_nothing_is_written_to_the_cache_or_the_query():
    sizes = SIZES["usual"]
    case = mla_case(sizes, "mix")
    query = sizes.query(case)
    storage, copied = case.cache.storage.clone(), query.clone()
    attend(query, case.layer, case.batch, scale=1.0, up=sizes.up())
    assert_close(case.cache.storage, storage, tolerance="exact")
    assert_close(query, copied, tolerance="exact")


def test_a_plan_serves_every_layer_of_its_batch_and_no_other_lengths():
    sizes = SIZES["usual"]
    case, other = mla_case(sizes, "mix"), mla_case(sizes, "decode")
    query, up = sizes.query(case), sizes.up()
    plan = plan_attend(request_for(query, case.layer, case.batch, up=up), case.batch)
    shared = attend(query, case.layer, case.batch, scale=sizes.scale, up=up, plan=plan)
    assert_is_mla(shared, sizes, case, query, up)
    with pytest.raises(StalePlanError, match="Make a new plan for each step"):
        attend(sizes.query(other), other.layer, other.batch, scale=sizes.scale, up=up, plan=plan)


def test_the_path_names_the_forms_that_ran():
    sizes = SIZES["usual"]
    case = mla_case(sizes, "mix")
    query, up = sizes.query(case), sizes.up()
    for form in ("latent", "head"):
        attended = attend(query, case.layer, case.batch, scale=1.0, up=up, form=form, backend="portable")
        assert attended.path == f"portable:{form}"
