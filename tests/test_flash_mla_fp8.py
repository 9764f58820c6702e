"""fp8 caches through latentkv.flash_mla: rows as FlashMLA's tests make them, at FlashMLA's tolerances.

As there, the expected result is computed from the rows read back and rounded to bfloat16.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from latentkv.errors import ShapeError, StalePlanError
from latentkv.flash_mla import flash_mla_with_kvcache, get_mla_metadata
from latentkv.ops.sparse import attend_sparse
from support.compare import assert_close
from support.flash_mla import DenseCase, dense_data, dense_reference

STORED = (torch.float8_e4m3fn, torch.uint8, torch.int8)


def quantised(cache: Tensor, *, latent: int, power_of_two: bool) -> tuple[Tensor, Tensor]:
    """Bytes [pages, P, G, ...] of rows [pages, P, G, D], and in float64 what they stand for; NaN becomes 255s."""
    values = cache.float()
    tiles = values[..., :latent].reshape(*cache.shape[:-1], -1, 128)
    scale = tiles.abs().amax(dim=-1) / 448
    if power_of_two:
        scale = 2 ** scale.clamp(min=1e-4).log2().ceil()
    codes = (tiles / scale[..., None]).to(torch.float8_e4m3fn)
    parts = (codes.flatten(-2), scale, values[..., latent:].bfloat16())
    stored = torch.cat([part.contiguous().view(torch.uint8) for part in parts], dim=-1)
    exact = torch.cat([(codes.double() * scale[..., None].double()).flatten(-2), parts[2].double()], dim=-1)
    unused = values.isnan().any(dim=-1)
    stored[unused] = 255
    return stored, exact.masked_fill(unused[..., None], torch.nan)


DENSE = {
    "decode": DenseCase(3, 1, 140, 16, 1, is_varlen=True, is_causal=True),
    "several tokens": DenseCase(2, 4, 70, 9, 1, is_varlen=True, is_causal=True, have_zero_seqlen_k=True),
    "KV heads": DenseCase(2, 2, 70, 6, 3, is_varlen=False, is_causal=False),
    "other sizes": DenseCase(2, 2, 50, 5, 1, is_varlen=True, is_causal=True, d=288, dv=256, page_tokens=16),
}


@pytest.mark.parametrize("power_of_two", [False, True])
@pytest.mark.parametrize("dtype", STORED, ids=str)
@pytest.mark.parametrize("case", DENSE.values(), ids=DENSE)
def test_dense(case: DenseCase, dtype: torch.dtype, power_of_two: bool) -> None:
    data = dense_data(case)
    stored, exact = quantised(data.k_cache, latent=case.dv, power_of_two=power_of_two)
    if case.d == 576:
        assert stored.shape[-1] == 656
    arguments = (data.block_table, data.cache_seqlens, case.dv, *get_mla_metadata(is_fp8_kvcache=True))
    out, lse = flash_mla_with_kvcache(
        data.q, stored.view(dtype), *arguments, causal=case.is_causal, is_fp8_kvcache=True
    )
    # Their kernel rounds keys to bfloat16, as their reference does. Ours does not: an LSE shows the difference.
    rounded = dense_reference(
        replace(data, k_cache=exact.bfloat16()), dv=case.dv, causal=case.is_causal, dtype=torch.float32
    )
    assert_close(out, rounded[0], tolerance="flash_mla sparse decode out")
    _, expected_lse = dense_reference(replace(data, k_cache=exact), dv=case.dv, causal=case.is_causal)
    assert_close(lse, expected_lse, tolerance="lse")


@pytest.mark.parametrize("extra", [False, True], ids=["one cache", "two caches"])
@pytest.mark.parametrize("page_tokens", [1, 61, 64])
def test_sparse(page_tokens: int, extra: bool) -> None:
    generator = torch.Generator().manual_seed(page_tokens)
    pages, batch, new, heads, topk = -(-200 // page_tokens), 3, 2, 16, 70
    rows = pages * page_tokens
    stores, reads, options = [], [], {}
    for _ in range(1 + extra):
        values = (torch.randn(pages, page_tokens, 1, 576, generator=generator) / 3).bfloat16()
        values[-1, -1] = torch.nan
        stored, exact = quantised(values, latent=512, power_of_two=True)
        stores.append(stored.view(torch.float8_e4m3fn))
        reads.append(exact.flatten(0, 2))
    indices = torch.randint(-20, rows - 1, (1 + extra, batch, new, topk), generator=generator, dtype=torch.int32)
    if extra:
        options = {"extra_k_cache": stores[1], "extra_indices_in_kvcache": indices[1]}
    q = (torch.randn(batch, new, heads, 576, generator=generator) / 3).bfloat16()
    out, lse = flash_mla_with_kvcache(
        q, stores[0], None, None, 512, *get_mla_metadata(), is_fp8_kvcache=True, indices=indices[0], **options
    )
    slots = torch.cat([torch.where(part >= 0, part + i * rows, -1) for i, part in enumerate(indices)], dim=-1)
    query, slots, keys = q.flatten(0, 1).double(), slots.flatten(0, 1), torch.cat(reads)
    rounded, _, _ = attend_sparse(query, keys.bfloat16().double(), slots, scale=576**-0.5, value_width=512)
    assert_close(out.flatten(0, 1), rounded, tolerance="flash_mla sparse decode out")
    _, _, expected_lse = attend_sparse(query, keys, slots, scale=576**-0.5, value_width=512)
    assert_close(lse.transpose(1, 2).flatten(0, 1), expected_lse, tolerance="lse")


def test_metadata_holds_to_the_kind_of_cache() -> None:
    q, table = torch.zeros(1, 1, 2, 160), torch.zeros(1, 1, dtype=torch.int32)
    lengths = torch.ones(1, dtype=torch.int32)
    metadata, _ = get_mla_metadata(is_fp8_kvcache=True)
    with pytest.raises(StalePlanError, match="is_fp8_kvcache: expected True, got False"):
        flash_mla_with_kvcache(q, torch.zeros(1, 64, 1, 160), table, lengths, 128, metadata)
    cache = torch.zeros(1, 64, 1, 128 + 4 + 64, dtype=torch.uint8)
    out, _ = flash_mla_with_kvcache(q, cache, table, lengths, 128, metadata, is_fp8_kvcache=True)
    assert not out.any()


def test_rows_of_another_size_are_refused() -> None:
    # The 584-byte rows of models whose RoPE part belongs to the values are not what q and head_dim_v say.
    q, table = torch.zeros(1, 1, 2, 512, dtype=torch.bfloat16), torch.zeros(1, 1, dtype=torch.int32)
    cache = torch.zeros(1, 64, 1, 584, dtype=torch.uint8)
    with pytest.raises(ShapeError, match=r"\[pages, P, G, 528\].*A row is head_dim_v e4m3 codes"):
        flash_mla_with_kvcache(
            q, cache, table, torch.ones(1, dtype=torch.int32), 512, *get_mla_metadata(), is_fp8_kvcache=True
        )
