"""What codes cost in attention: the whole way from projections to outputs, against float64 over the numbers themselves.

Also who computes it: the native backend. Codes of keys and values: test_coded_keys_values.py.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from latentkv.attend import attend, request_for
from latentkv.backends.isa import available_isas
from latentkv.backends.kernels import choose_kernels
from latentkv.backends.registry import select
from latentkv.cache.batch import Batch
from latentkv.cache.latent import LatentCache
from latentkv.cache.layout import FORMATS, CacheLayout, kv_row, mla_row
from latentkv.ops.absorb import UpProjection
from support.compare import assert_close
from support.hostile import poison
from support.reference import mla_reference

HEADS, LATENT, ROPE, NOPE, VALUE = 8, 192, 16, 24, 20
CODED = ("fp8", "int8", "int6", "int4")
LENGTHS = [(7, 200), (1, 65), (33, 33), (1, 1)]
PAGE = 16
CODES_PER_BYTE = {"fp8": 1, "int8": 1, "int6": 2, "int4": 2}  # of int6 only its lower bits are set here


def case(format: str, *, rotated: bool, outliers: float = 1.0) -> tuple[Tensor, ...]:
    """Writes rows of three channels that are `outliers` times larger; what attention gives, and what it should."""
    generator = torch.Generator().manual_seed(3)
    layout = CacheLayout(
        mla_row(replace(FORMATS[format], rotated=rotated), kv_lora_rank=LATENT, qk_rope_head_dim=ROPE), 1, PAGE
    )
    pages = [-(-context // PAGE) for _, context in LENGTHS]
    cache = LatentCache(layout, sum(pages) + 2)
    poison(cache.storage)
    order = torch.randperm(cache.num_pages, generator=generator).tolist()
    tables = [[order.pop() for _ in range(count)] for count in pages]
    contexts, layer = [], cache.layer(0)
    for table, (_, context) in zip(tables, LENGTHS, strict=True):
        kv = torch.randn(context, LATENT + ROPE, generator=generator)
        kv[:, [5, 70, 150]] *= outliers
        slots = Batch.build(query_lens=[context], context_lens=[context], pages=[table], page_tokens=PAGE).slots
        still = (torch.ones(context, ROPE // 2), torch.zeros(context, ROPE // 2))
        options = {"latent_norm": None, "rope_norm": None, "latent_eps": 0.0, "rope_eps": 0.0}
        choose_kernels().write_latent(layer, slots, kv, angles=still, groups=1, interleaved=False, **options)
        contexts.append({"latent": kv[:, :LATENT].double(), "rope": kv[:, LATENT:].bfloat16().double()})
    weight = torch.randn(HEADS * (NOPE + VALUE), LATENT, generator=generator) * LATENT**-0.5
    weight[:, [5, 70, 150]] /= outliers  # as a model would have them: large channels do not drown the others
    up = UpProjection.from_kv_b_proj(weight, num_heads=HEADS, qk_nope_head_dim=NOPE)
    batch = Batch.build(
        query_lens=[new for new, _ in LENGTHS], context_lens=[all for _, all in LENGTHS], pages=tables, page_tokens=PAGE
    )
    query = torch.randn(batch.num_tokens, HEADS, NOPE + ROPE, generator=generator)
    scale = (NOPE + ROPE) ** -0.5
    attended = attend(query, layer, batch, scale=scale, up=up.rotated() if rotated else up)
    out, lse = mla_reference(query, contexts, LENGTHS, w_uk=up.w_uk, w_uv=up.w_uv, scale=scale)
    return attended.out, out, attended.lse, lse


@pytest.mark.parametrize("rotated", [False, True])
@pytest.mark.parametrize("format", CODED)
def test_attention_over_codes_of_normal_numbers_errs_as_codes_do(format: str, rotated: bool) -> None:
    out, expected, lse, expected_lse = case(format, rotated=rotated)
    assert_close(out, expected, tolerance=f"attention over {format}")
    assert_close(lse, expected_lse, tolerance=f"lse over {format}")


@pytest.mark.parametrize("format", ["int8", "int6", "int4"])
def test_rotation_keeps_that_error_where_channels_are_outliers(format: str) -> None:
    out, expected, *_ = case(format, rotated=True, outliers=8.0)
    assert_close(out, expected, tolerance=f"attention over {format}")
    error = (out.double() - expected).norm()
    unrotated, *_ = case(format, rotated=False, outliers=8.0)
    assert error < 0.6 * (unrotated.double() - expected).norm()


def test_a_rotated_float32_cache_changes_nothing() -> None:
    out, *_ = case("f32", rotated=True)
    plain, *_ = case("f32", rotated=False)
    assert_close(out, plain.double(), tolerance="float32")


@pytest.mark.parametrize("format", CODED)
def test_native_reads_latents_of_codes_and_keys_and_values_of_codes(format: str) -> None:
    batch = Batch.build(query_lens=[1], context_lens=[1], pages=[[0]], page_tokens=PAGE)
    latents = CacheLayout(mla_row(format, kv_lora_rank=LATENT, qk_rope_head_dim=ROPE), 1, PAGE)
    request = request_for(torch.zeros(1, HEADS, LATENT + ROPE), LatentCache(latents, 1).layer(0), batch)
    assert select(request).backend.name == "native"
    keys = CacheLayout(kv_row(format, num_key_value_heads=1, head_dim=8, v_head_dim=8), 1, PAGE)
    request = request_for(torch.zeros(1, HEADS, 8), LatentCache(keys, 1).layer(0), batch)
    assert select(request).backend.name == "native"


def coded_case(format: str, heads: int) -> tuple[Tensor, LatentCache, Batch]:
    """70 rows of 512 codes, of which the first ten hold every code that is a number."""
    generator = torch.Generator().manual_seed(3)
    cache = LatentCache(CacheLayout(mla_row(format, kv_lora_rank=512, qk_rope_head_dim=64), 1, PAGE), 5)
    rows = torch.randn(70, 576, generator=generator)
    cache.layer(0).write(torch.arange(70), {"latent": rows[:, :512], "rope": rows[:, 512:]})
    codes = torch.arange(256, dtype=torch.uint8).repeat(2)
    if format == "fp8":
        codes[(codes & 0x7F) == 0x7F] = 0
    cache.storage.view(-1, cache.storage.shape[-1])[:10, : len(codes) // CODES_PER_BYTE[format]] = codes[
        : len(codes) // CODES_PER_BYTE[format]
    ]
    batch = Batch.build(query_lens=[1], context_lens=[70], pages=[[0, 1, 2, 3, 4]], page_tokens=PAGE)
    return torch.randn(1, heads, 576, generator=generator) / 8, cache, batch


@pytest.mark.parametrize("isa", available_isas())
@pytest.mark.parametrize("heads", [1, 2, 4, 16, 40])
@pytest.mark.parametrize("format", CODED)
def test_every_code_is_read_as_the_reference_reads_it(format: str, heads: int, isa: str) -> None:
    query, cache, batch = coded_case(format, heads)
    expected = attend(query, cache.layer(0), batch, scale=0.04, backend="portable")
    for integer in (False, True):
        out = attend(query, cache.layer(0), batch, scale=0.04, backend=f"native:{isa}", integer=integer)
        tolerance = f"attention by words over {format}" if integer else "float32"
        assert_close(out.out, expected.out.double(), tolerance=tolerance)


@pytest.mark.parametrize("isa", available_isas())
@pytest.mark.parametrize("heads", [1, 2, 16, 40])
@pytest.mark.parametrize("code", [0x7F, 0xFF])
def test_a_code_that_is_no_number_is_never_read_as_one(code: int, heads: int, isa: str) -> None:
    query, cache, batch = coded_case("fp8", heads)
    cache.storage.view(-1, cache.storage.shape[-1])[41, 300] = code
    for integer in (False, True):
        out = attend(query, cache.layer(0), batch, scale=0.04, backend=f"native:{isa}", integer=integer)
        assert not out.lse.isfinite().any()
