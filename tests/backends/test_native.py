"""The native backend over poisoned caches, against float64, on every instruction set this machine has."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from latentkv.attend import attend, request_for
from latentkv.backends import native_head
from latentkv.backends.base import Attended, Form
from latentkv.backends.isa import available_isas, find_isa
from latentkv.backends.native import NativeBackend
from latentkv.backends.native_project import project_columns, project_rows
from latentkv.backends.portable import PortableBackend
from latentkv.cache.batch import Batch
from latentkv.cache.latent import LatentCache
from latentkv.cache.layout import PAGE_TOKENS, CacheLayout, kv_row, mla_row
from latentkv.errors import ShapeError, StalePlanError
from latentkv.ops.absorb import UpProjection
from support.compare import assert_close
from support.hostile import Hostile, awkward_lengths, hostile_case, strided_normal
from support.mla_sizes import MLASizes
from support.reference import absorbed_reference, kv_reference, mla_reference

MODES = ["decode", "prefill", "chunk", "mix", "empty"]

every_isa = pytest.mark.parametrize("isa", available_isas())


# Every path through the tiles: rows that fill two vectors, one, a few lanes or only columns; widths of whole strips,
# whole vectors and neither; RoPE keys shared by all heads, by some, or absent; more rows than one tile.
SIZES = {
    "deepseek": MLASizes(H=16, L=512, R=64, N=24, V=20),
    "one_head": MLASizes(H=1, L=64, R=16, N=8, V=8),
    "two_heads": MLASizes(H=2, L=32, R=32, N=8, V=8),
    "one_head_odd": MLASizes(H=1, L=7, R=3, N=5, V=2),
    "three_heads_odd": MLASizes(H=3, L=65, R=1, N=2, V=3),
    "many_heads": MLASizes(H=70, L=48, R=16, N=6, V=6),
    "no_rope": MLASizes(H=5, L=40, R=0, N=4, V=6),
    "no_nope": MLASizes(H=20, L=24, R=8, N=0, V=5),
    "converted_gqa": MLASizes(H=40, L=16, R=32, N=0, V=3, groups=4),
    "grouped_with_nope": MLASizes(H=6, L=5, R=6, N=4, V=4, groups=3),
    "grouped_narrow": MLASizes(H=4, L=16, R=64, N=0, V=4, groups=2),
}


def run(
    query: Tensor,
    case: Hostile,
    *,
    isa: str | None = None,
    integer: bool = True,
    deterministic: bool = False,
    scale: float = 0.1,
    **options,
) -> Attended:
    """`attend` with a native backend of its own options."""
    backend = NativeBackend(isa=isa, integer=integer)
    up, form, causal = options.get("up"), options.get("form", "auto"), options.get("causal", True)
    request = request_for(query, case.layer, case.batch, up=up, form=form, deterministic=deterministic)
    assert backend.supports(request).ok
    plan = backend.plan(request, case.batch)
    return backend.run(plan, request, query, case.layer, case.batch, scale=scale, causal=causal, up=up)


def absorbed_query(sizes: MLASizes, case: Hostile, dtype: torch.dtype = torch.float32) -> Tensor:
    return strided_normal(case.batch.num_tokens, sizes.H, sizes.L + sizes.query_rope, seed=13, dtype=dtype)


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@every_isa
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", SIZES)
def test_absorbed_queries(name: str, mode: str, causal: bool, isa: str) -> None:
    sizes = SIZES[name]
    case = hostile_case(sizes.row(), awkward_lengths(8)[mode], page_tokens=8)
    query = absorbed_query(sizes, case)
    got = run(query, case, isa=isa, causal=causal)
    out, lse = absorbed_reference(
        query, case.contexts, case.lengths, scale=0.1, causal=causal, rope_groups=sizes.groups
    )
    assert_close(got.out, out, tolerance="float32")
    assert_close(got.lse, lse, tolerance="lse")
    assert got.path == f"native:{isa}:{'latent' if case.lengths else ''}"


@every_isa
@pytest.mark.parametrize("form", ["latent", "head", "auto"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", SIZES)
def test_mla_is_the_papers(name: str, mode: str, form: Form, isa: str) -> None:
    sizes = SIZES[name]
    case = hostile_case(sizes.row(), awkward_lengths(4)[mode], page_tokens=4)
    query, up = sizes.query(case), sizes.up()
    got = run(query, case, isa=isa, up=up, form=form)
    out, lse = mla_reference(
        query, case.contexts, case.lengths, w_uk=up.w_uk, w_uv=up.w_uv, scale=0.1, rope_groups=sizes.groups
    )
    assert_close(got.out, out, tolerance="float32")
    assert_close(got.lse, lse, tolerance="lse")


@every_isa
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("heads", "groups", "width"), [(6, 1, 5), (6, 3, 64), (6, 6, 16), (1, 1, 8), (80, 4, 20)])
def test_grouped_query_attention(heads: int, groups: int, width: int, mode: str, causal: bool, isa: str) -> None:
    row = kv_row("f32", num_key_value_heads=groups, head_dim=width, v_head_dim=width + 3)
    case = hostile_case(row, awkward_lengths(4)[mode], page_tokens=4)
    query = strided_normal(case.batch.num_tokens, heads, width, seed=17)
    got = run(query, case, isa=isa, causal=causal)
    out, lse = kv_reference(query, case.contexts, case.lengths, groups=groups, scale=0.1, causal=causal)
    assert_close(got.out, out, tolerance="float32")
    assert_close(got.lse, lse, tolerance="lse")


@every_isa
@pytest.mark.parametrize("form", ["latent", "head"])
@pytest.mark.parametrize("query_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("format", ["bf16", "f16"])
@pytest.mark.parametrize("name", ["deepseek", "one_head", "three_heads_odd", "grouped_with_nope"])
def test_half_precision_rounds_nothing_but_the_output(
    name: str, format: str, query_dtype: torch.dtype, form: Form, isa: str
) -> None:
    sizes = SIZES[name]
    row = sizes.row(format)
    # So many tokens that the roundings of the narrowest output average out, as the cosine's tolerance supposes.
    case = hostile_case(row, 3 * awkward_lengths(16)["mix"], page_tokens=16)
    query = sizes.query(case, query_dtype)
    up = UpProjection(sizes.up().w_uk.bfloat16(), sizes.up().w_uv.bfloat16())
    got = run(query, case, isa=isa, up=up, form=form)
    out, lse = mla_reference(
        query, case.contexts, case.lengths, w_uk=up.w_uk, w_uv=up.w_uv, scale=0.1, rope_groups=sizes.groups
    )
    assert_close(got.out, out, tolerance=str(query_dtype).removeprefix("torch."))
    assert_close(got.lse, lse, tolerance="lse")


@every_isa
@pytest.mark.parametrize("heads", [1, 2, 7, 16])
def test_every_float16_is_read_as_it_is(heads: int, isa: str) -> None:
    """One context token has weight 1, so that the output is its value: subnormals, infinities and NaN included."""
    layout = CacheLayout(kv_row("f16", num_key_value_heads=1, head_dim=8, v_head_dim=256), 1, 1)
    layer = LatentCache(layout, 256).layer(0)
    bits = torch.arange(1 << 16, dtype=torch.int32).to(torch.int16).view(256, 256)
    layer.rows[:, 0, :8] = 0
    layer.rows[:, 0, 8:] = bits.view(torch.float16)
    pages = [[page] for page in range(256)]
    batch = Batch.build(query_lens=[1] * 256, context_lens=[1] * 256, pages=pages, page_tokens=1)
    request = request_for(torch.ones(256, heads, 8), layer, batch)
    backend = NativeBackend(isa=isa)
    plan = backend.plan(request, batch)
    got = backend.run(plan, request, torch.ones(256, heads, 8), layer, batch, scale=1.0, causal=True, up=None)
    expected = bits.view(torch.float16).float()[:, None].expand(-1, heads, -1)
    assert_close(got.out, expected, tolerance="exact")


@every_isa
@pytest.mark.parametrize("page_tokens", PAGE_TOKENS)
def test_every_page_size(page_tokens: int, isa: str) -> None:
    sizes = SIZES["two_heads"]
    case = hostile_case(sizes.row(), awkward_lengths(page_tokens)["mix"], page_tokens=page_tokens)
    query = absorbed_query(sizes, case)
    got = run(query, case, isa=isa)
    out, lse = absorbed_reference(query, case.contexts, case.lengths, scale=0.1)
    assert_close(got.out, out, tolerance="float32")
    assert_close(got.lse, lse, tolerance="lse")


@every_isa
@pytest.mark.parametrize("heads", [*range(1, 18), 23, 31, 32, 33, 63, 64, 65, 128, 256])
def test_every_number_of_heads(heads: int, isa: str) -> None:
    sizes = MLASizes(H=heads, L=32, R=16)
    case = hostile_case(sizes.row(), [(1, 50), (2, 49)], page_tokens=16)
    query = absorbed_query(sizes, case)
    got = run(query, case, isa=isa)
    out, lse = absorbed_reference(query, case.contexts, case.lengths, scale=0.1)
    assert_close(got.out, out, tolerance="float32")
    assert_close(got.lse, lse, tolerance="lse")


@every_isa
@pytest.mark.parametrize("page_tokens", [4, 64])
@pytest.mark.parametrize("query_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("heads", [1, 3, 17, 33, 70])
def test_rows_of_whole_matrix_tiles(heads: int, query_dtype: torch.dtype, page_tokens: int, isa: str) -> None:
    """bfloat16 rows of 32s of elements: contexts that end inside a tile, between pages, and after many chunks."""
    row = mla_row("bf16", kv_lora_rank=96, qk_rope_head_dim=32)
    lengths = [(1, 300), (3, 130), (0, 5), (1, 64), (2, 65), (1, 1), (5, 16), (1, 47)]
    case = hostile_case(row, lengths, page_tokens=page_tokens)
    query = strided_normal(case.batch.num_tokens, heads, 128, seed=13, dtype=query_dtype)
    got = run(query, case, isa=isa)
    out, lse = absorbed_reference(query, case.contexts, case.lengths, scale=0.1)
    assert_close(got.out, out, tolerance=str(query_dtype).removeprefix("torch."))
    assert_close(got.lse, lse, tolerance="lse")


@every_isa
def test_keys_of_several_groups_in_whole_matrix_tiles(isa: str) -> None:
    row = kv_row("bf16", num_key_value_heads=2, head_dim=64, v_head_dim=32)
    case = hostile_case(row, [(4, 100), (1, 33), (40, 40)], page_tokens=16)
    query = strided_normal(case.batch.num_tokens, 8, 64, seed=13)
    got = run(query, case, isa=isa)
    out, lse = kv_reference(query, case.contexts, case.lengths, groups=2, scale=0.1)
    assert_close(got.out, out, tolerance="float32")
    assert_close(got.lse, lse, tolerance="lse")


def words(format: str, *, integer: bool) -> tuple[str, str]:
    """Tolerances of outputs and of LSE over rows of codes, against float64 over the same rows."""
    return (f"attention by words over {format}", f"lse by words over {format}") if integer else ("float32", "lse")


@every_isa
@pytest.mark.parametrize("integer", [False, True])
@pytest.mark.parametrize("form", ["latent", "head"])
@pytest.mark.parametrize("format", ["fp8", "int8", "int6", "int4"])
@pytest.mark.parametrize("name", ["deepseek", "one_head_odd", "two_heads", "three_heads_odd", "grouped_narrow"])
def test_rows_of_codes_are_read_as_they_are(name: str, format: str, form: Form, integer: bool, isa: str) -> None:
    sizes = SIZES[name]
    row = sizes.row(format)
    case = hostile_case(row, [*awkward_lengths(16)["mix"], (1, 100)], page_tokens=16)
    query, up = sizes.query(case), sizes.up()
    got = run(query, case, isa=isa, integer=integer, up=up, form=form)
    out, lse = mla_reference(
        query, case.contexts, case.lengths, w_uk=up.w_uk, w_uv=up.w_uv, scale=0.1, rope_groups=sizes.groups
    )
    of_out, of_lse = words(format, integer=integer)
    assert_close(got.out, out, tolerance=of_out)
    assert_close(got.lse, lse, tolerance=of_lse)


@every_isa
@pytest.mark.parametrize("integer", [False, True])
@pytest.mark.parametrize("heads", [1, 2, 3, 5, 16, 17, 40, 70])
@pytest.mark.parametrize("format", ["fp8", "int8", "int6", "int4"])
def test_every_number_of_heads_over_rows_of_codes(format: str, heads: int, integer: bool, isa: str) -> None:
    row = mla_row(format, kv_lora_rank=256, qk_rope_head_dim=32)
    case = hostile_case(row, [(1, 130), (2, 64), (0, 3), (1, 15)], page_tokens=16)
    query = strided_normal(case.batch.num_tokens, heads, 288, seed=13)
    got = run(query, case, isa=isa, integer=integer)
    out, lse = absorbed_reference(query, case.contexts, case.lengths, scale=0.1)
    of_out, of_lse = words(format, integer=integer)
    assert_close(got.out, out, tolerance=of_out)
    assert_close(got.lse, lse, tolerance=of_lse)


@every_isa
@pytest.mark.parametrize("integer", [False, True])
@pytest.mark.parametrize("format", ["fp8", "int8", "int6", "int4"])
def test_every_code_is_read_as_it_is(format: str, integer: bool, isa: str) -> None:
    """One context token has weight 1, so that the output is its value: all bytes, NaN of fp8 included."""
    layer = LatentCache(CacheLayout(mla_row(format, kv_lora_rank=256, qk_rope_head_dim=8), 1, 1), 3).layer(0)
    generator = torch.Generator().manual_seed(1)
    parts = {"latent": torch.randn(3, 256, generator=generator), "rope": torch.randn(3, 8, generator=generator)}
    layer.write(torch.arange(3), parts)
    latent = layer.layout.part("latent")
    for page in range(3):
        layer.rows[page, 0, : latent.size_bytes] = (torch.arange(latent.size_bytes) * (1 + page * 6)).to(torch.uint8)
    batch = Batch.build(query_lens=[1] * 3, context_lens=[1] * 3, pages=[[0], [1], [2]], page_tokens=1)
    query = torch.zeros(3, 4, 264)
    backend = NativeBackend(isa=isa, integer=integer)
    request = request_for(query, layer, batch)
    got = backend.run(backend.plan(request, batch), request, query, layer, batch, scale=1.0, causal=True, up=None)
    expected = layer.read(torch.arange(3))["latent"][:, None].expand(-1, 4, -1)
    if format == "fp8":
        # A NaN among the keys makes every score of its token NaN, and with it the whole output.
        assert expected.isnan().any()
        assert got.out.isnan().all()
    else:
        assert_close(got.out, expected, tolerance=words(format, integer=True)[0] if integer else "exact")


LONG = [(1, 2100), (3, 1500), (0, 9), (1, 1), (40, 1000)]


@every_isa
@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.usefixtures("threads")
def test_contexts_cut_between_threads_are_merged(isa: str, deterministic: bool) -> None:
    sizes = MLASizes(H=3, L=40, R=8)
    case = hostile_case(sizes.row(), LONG, page_tokens=64)
    query = absorbed_query(sizes, case)
    out, lse = absorbed_reference(query, case.contexts, case.lengths, scale=0.1)
    for count in (1, 2, 5):
        torch.set_num_threads(count)
        got = run(query, case, isa=isa, deterministic=deterministic)
        assert_close(got.out, out, tolerance="float32")
        assert_close(got.lse, lse, tolerance="lse")
        everything = run(query, case, isa=isa, deterministic=deterministic, causal=False)
        assert everything.lse[0].equal(got.lse[0])
        assert not everything.lse[1].equal(got.lse[1])


@every_isa
@pytest.mark.parametrize("causal", [True, False])
def test_head_form_in_stretches(isa: str, causal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native_head, "STRETCH_BYTES", 1)
    sizes = MLASizes(H=5, L=12, R=4, N=8, V=8)
    case = hostile_case(sizes.row(), [(130, 170), (1, 101), (70, 70), (0, 3)], page_tokens=16)
    query, up = strided_normal(case.batch.num_tokens, 5, 12, seed=11), sizes.up()
    got = run(query, case, isa=isa, up=up, form="head", causal=causal)
    out, lse = mla_reference(query, case.contexts, case.lengths, w_uk=up.w_uk, w_uv=up.w_uv, scale=0.1, causal=causal)
    assert_close(got.out, out, tolerance="float32")
    assert_close(got.lse, lse, tolerance="lse")


@every_isa
def test_both_forms_in_one_batch(isa: str) -> None:
    sizes = MLASizes(H=4, L=64, R=8, N=8, V=8)
    case = hostile_case(sizes.row(), [(1, 40), (60, 60), (2, 50), (0, 4), (50, 50)], page_tokens=16)
    query, up = strided_normal(case.batch.num_tokens, 4, 16, seed=11), sizes.up()
    got = run(query, case, isa=isa, up=up)
    out, lse = mla_reference(query, case.contexts, case.lengths, w_uk=up.w_uk, w_uv=up.w_uv, scale=0.1)
    assert got.path == f"native:{isa}:head+latent"
    assert_close(got.out, out, tolerance="float32")
    assert_close(got.lse, lse, tolerance="lse")


@every_isa
@pytest.mark.parametrize("format", ["f32", "bf16"])
def test_large_scores_keep_the_largest(format: str, isa: str) -> None:
    sizes = MLASizes(H=5, L=64, R=32)
    row = sizes.row(format)
    case = hostile_case(row, [(1, 300)], page_tokens=16)
    query = absorbed_query(sizes, case) * 1e4
    got = run(query, case, isa=isa)
    _, lse = absorbed_reference(query, case.contexts, case.lengths, scale=0.1)
    assert_close(got.lse, lse, tolerance="lse")
    assert got.out.isfinite().all()


@every_isa
@pytest.mark.parametrize("format", ["f32", "bf16"])
def test_a_query_that_is_not_a_number_is_not_hidden_and_stays_alone(format: str, isa: str) -> None:
    sizes = SIZES["deepseek"]
    row = sizes.row(format)
    case = hostile_case(row, [(1, 100)], page_tokens=16)
    query = absorbed_query(sizes, case)
    query[0, 3, 5] = torch.nan
    got = run(query, case, isa=isa)
    assert got.lse[0, 3].isnan()
    assert got.out[0, 3].isnan().all()
    assert not got.out[0, [0, 1, 2, 4, 15]].isnan().any()


@every_isa
def test_pages_beyond_two_to_the_31_elements(isa: str) -> None:
    """Elements are not touched but for three rows, so that the memory is only promised."""
    sizes = SIZES["two_heads"]
    case = hostile_case(sizes.row(), [(1, 3)], page_tokens=1)
    pages = 2**31 // 64 + 100
    rows = torch.empty(pages, 1, 64)
    last = [pages - 1, 5, pages - 2]
    for token, page in enumerate(last):
        rows[page] = case.layer.rows[case.batch.page_table[0, token]]
    batch = Batch.build(query_lens=[1], context_lens=[3], pages=[last], page_tokens=1)
    query = absorbed_query(sizes, case)
    got = run(query, replace(case, layer=replace(case.layer, rows=rows), batch=batch), isa=isa)
    out, _ = absorbed_reference(query, case.contexts, case.lengths, scale=0.1)
    assert_close(got.out, out, tolerance="float32")


@pytest.mark.parametrize("form", ["latent", "head"])
@pytest.mark.parametrize("bad", [-1, 10_000])
def test_a_page_outside_the_cache_is_told(bad: int, form: Form) -> None:
    sizes = SIZES["two_heads"]
    case = hostile_case(sizes.row(), [(1, 5), (1, 9)], page_tokens=4)
    case.batch.page_table[1, 2] = bad
    query = strided_normal(2, 2, 8 + 32)
    with pytest.raises(ShapeError, match=rf"page_table\[1\]: expected .*{bad}"):
        run(query, case, up=sizes.up(), form=form)


@pytest.mark.parametrize("form", ["latent", "head"])
def test_a_table_with_too_few_pages_is_told(form: Form) -> None:
    sizes = SIZES["two_heads"]
    case = hostile_case(sizes.row(), [(1, 9)], page_tokens=4)
    batch = replace(case.batch, page_table=case.batch.page_table[:, :2])
    with pytest.raises(ShapeError, match=r"page_table\[0\]: expected 3 pages"):
        run(strided_normal(1, 2, 8 + 32), replace(case, batch=batch), up=sizes.up(), form=form)


def test_another_backends_plan_is_refused() -> None:
    sizes = SIZES["two_heads"]
    case = hostile_case(sizes.row(), [(1, 9)], page_tokens=4)
    query = absorbed_query(sizes, case)
    request = request_for(query, case.layer, case.batch)
    plan = PortableBackend().plan(request, case.batch)
    with pytest.raises(StalePlanError, match="made by backend 'portable'"):
        NativeBackend().run(plan, request, query, case.layer, case.batch, scale=1.0, causal=True, up=None)


def test_what_it_cannot_run_has_a_reason() -> None:
    sizes = SIZES["two_heads"]
    case = hostile_case(sizes.row(), [(1, 9)], page_tokens=4)
    request = request_for(absorbed_query(sizes, case), case.layer, case.batch)
    assert NativeBackend().supports(replace(request, device="cuda")).reason == "runs on the CPU only, not on cuda"
    assert "no kernel for float16" in NativeBackend().supports(replace(request, query_dtype="float16")).reason


def test_attend_takes_it_by_name_and_by_default() -> None:
    sizes = SIZES["two_heads"]
    case = hostile_case(sizes.row(), [(1, 9)], page_tokens=4)
    query = absorbed_query(sizes, case)
    for name in ("auto", "native"):
        assert attend(query, case.layer, case.batch, scale=1.0, backend=name).path.startswith("native:")


def test_nothing_is_written_to_the_cache_or_the_query() -> None:
    sizes = SIZES["deepseek"]
    case = hostile_case(sizes.row(), awkward_lengths(8)["mix"], page_tokens=8)
    query = absorbed_query(sizes, case)
    storage, copied = case.cache.storage.clone(), query.clone()
    run(query, case)
    assert_close(case.cache.storage, storage, tolerance="exact")
    assert_close(query, copied, tolerance="exact")


@every_isa
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tokens", [1, 2, 64, 65, 66, 67, 130])
def test_few_tokens_after_full_tiles_are_projected(tokens: int, dtype: torch.dtype, isa: str) -> None:
    """A tile has 64 tokens; one and two go another way through attention than many do."""
    kernels = find_isa(isa)
    weight = (torch.randn(3, 40, 96) / 10).to(dtype)
    latents, queries = torch.randn(tokens, 3, 96), torch.randn(tokens, 3, 40)
    out = torch.empty(tokens, 3, 40)
    project_rows(kernels, latents, weight, into=out)
    assert_close(out, torch.einsum("thl,hvl->thv", latents.double(), weight.double()), tolerance="float32")
    absorbed = project_columns(kernels, queries, weight)
    assert_close(absorbed, torch.einsum("thv,hvl->thl", queries.double(), weight.double()), tolerance="float32")
