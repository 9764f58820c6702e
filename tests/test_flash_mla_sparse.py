"""Sparse prefill and decoding through latentkv.flash_mla, at FlashMLA's tolerances and, in float32, against float64."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from latentkv.errors import StalePlanError
from latentkv.flash_mla import flash_mla_sparse_fwd, flash_mla_with_kvcache, get_mla_metadata, selection
from latentkv.ops.sparse import apply_sink, attend_sparse, first_slots
from support.compare import assert_close

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
NAN_ROWS = 3


def normal(*shape: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(shape, generator=generator) / 3).clamp_(-3, 3).to(dtype)


@dataclass(frozen=True)
class Case:
    """Sizes of a sparse call, under FlashMLA's names, and which optional arguments it has."""

    s_q: int
    s_kv: int
    topk: int
    h_q: int
    d: int = 576
    d_v: int = 512
    sink: bool = False
    topk_length: bool = False
    no_valid: bool = False

    def indices(self, *leading: int, seed: int = 2) -> Tensor:
        """Row numbers, a fifth of them invalid in every way, some twice; the last rows, which are NaN, never."""
        generator = torch.Generator().manual_seed(seed)
        shape = (*leading, self.topk)
        chosen = torch.randint(self.s_kv - NAN_ROWS, shape, generator=generator, dtype=torch.int32)
        wrong = torch.tensor([-1, -2, -(2**31), self.s_kv, self.s_kv + 1, 2**31 - 1], dtype=torch.int32)
        kind = torch.randint(len(wrong), shape, generator=generator)
        invalid = torch.rand(shape, generator=generator) < (1.1 if self.no_valid else 0.2)
        indices = torch.where(invalid, wrong[kind], chosen)
        indices[0] = -1
        return indices

    def attn_sink(self) -> Tensor | None:
        if not self.sink:
            return None
        sink = normal(self.h_q, seed=3) * 6
        sink[0] = torch.inf
        sink[-1] = -torch.inf
        return sink

    def lengths(self, count: int) -> Tensor | None:
        if not self.topk_length:
            return None
        generator = torch.Generator().manual_seed(4)
        lengths = torch.randint(self.topk + 1, (count,), generator=generator, dtype=torch.int32)
        lengths[-1] = 0
        return lengths


def expect(
    query: Tensor, rows: Tensor, slots: Tensor, *, d_v: int, scale: float, sink: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """out, max_logits and lse in float64, with FlashMLA's +inf."""
    out, largest, lse = attend_sparse(query.double(), rows.double(), slots, scale=scale, value_width=d_v)
    out = apply_sink(out, lse, None if sink is None else sink.double())
    return out, largest, lse.masked_fill(lse == -torch.inf, torch.inf)


PREFILL = {
    "plain": Case(17, 200, 64, 16),
    "keys without a rotary part": Case(5, 100, 32, 64, d=512),
    "one head": Case(5, 100, 32, 1),
    "more heads than one tile of rows": Case(3, 100, 32, 126),
    "odd sizes": Case(9, 61, 13, 5, d=45, d_v=37),
    "fewer values than a vector": Case(4, 30, 9, 3, d=7, d_v=3),
    "more indices than rows": Case(7, 20, 128, 8),
    "sink": Case(17, 200, 64, 16, sink=True),
    "topk_length": Case(17, 200, 64, 16, topk_length=True),
    "sink and topk_length": Case(17, 200, 64, 16, sink=True, topk_length=True),
    "nothing valid": Case(7, 50, 16, 8, sink=True, no_valid=True),
    "no indices": Case(3, 50, 0, 8),
    "no tokens": Case(1, 50, 16, 8),
    "a long choice": Case(2, 3000, 2048, 64, sink=True),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", PREFILL.values(), ids=PREFILL)
def test_sparse_prefill(case: Case, dtype: str) -> None:
    q = normal(case.s_q, case.h_q, case.d, seed=0, dtype=DTYPES[dtype])
    kv = normal(case.s_kv, 2, case.d, seed=1, dtype=DTYPES[dtype])[:, :1]
    kv[-NAN_ROWS:] = torch.nan
    indices, sink, lengths = case.indices(case.s_q, 1), case.attn_sink(), case.lengths(case.s_q)
    results = flash_mla_sparse_fwd(q, kv, indices, 0.7, case.d_v, sink, lengths)
    expected = expect(q, kv[:, 0], first_slots(indices[:, 0], lengths), d_v=case.d_v, scale=0.7, sink=sink)
    names = ("float32", "lse", "lse")
    if dtype == "bfloat16":
        names = ("flash_mla sparse prefill out", "flash_mla sparse prefill lse", "flash_mla sparse prefill lse")
    for actual, wanted, name in zip(results, expected, names, strict=True):
        assert_close(actual, wanted, tolerance=name)


def test_prefill_in_tiles_is_prefill_in_one(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(23, 100, 32, 8, sink=True, topk_length=True)
    arguments = (
        normal(case.s_q, case.h_q, case.d, seed=0),
        normal(case.s_kv, 1, case.d, seed=1),
        case.indices(case.s_q, 1),
        0.5,
        case.d_v,
        case.attn_sink(),
        case.lengths(case.s_q),
    )
    whole = flash_mla_sparse_fwd(*arguments)
    monkeypatch.setattr(selection, "TILE_BYTES", 5 * 4 * case.h_q * case.d_v)
    for actual, expected, name in zip(flash_mla_sparse_fwd(*arguments), whole, ("float32", "lse", "lse"), strict=True):
        assert_close(actual, expected, tolerance=name)


def test_max_logits_of_large_scores_and_equal_ones() -> None:
    q, kv = torch.ones(1, 3, 16), torch.ones(40, 1, 16)
    kv[30:] = -5.0
    q[0, 1] = -100.0
    q[0, 2] = 0.0
    indices = torch.arange(40, dtype=torch.int32).view(1, 1, 40)
    _, largest, _ = flash_mla_sparse_fwd(q, kv, indices, 1.0, 8)
    assert_close(largest, torch.tensor([[16.0, 8000.0, 0.0]]), tolerance="lse")


DECODE = {
    "plain": Case(2, 200, 64, 16),
    "sink": Case(2, 200, 64, 16, sink=True),
    "sink and topk_length": Case(3, 200, 64, 16, sink=True, topk_length=True),
    "odd sizes": Case(3, 200, 13, 5, d=45, d_v=37, topk_length=True),
    "nothing valid": Case(2, 200, 16, 8, sink=True, no_valid=True),
}
BATCH = 4


def paged(case: Case, page_tokens: int, dtype: torch.dtype, *, seed: int, gap_rows: int) -> Tensor:
    """A cache [pages, page_tokens, 1, D] with `gap_rows` rows of NaN between pages; its last rows are NaN too."""
    pages = -(-case.s_kv // page_tokens)
    whole = torch.full((pages, page_tokens + gap_rows, 1, case.d), torch.nan, dtype=dtype)
    cache = whole[:, :page_tokens]
    cache.copy_(normal(pages, page_tokens, 1, case.d, seed=seed, dtype=dtype))
    for row in range(case.s_kv - NAN_ROWS, pages * page_tokens):
        cache[row // page_tokens, row % page_tokens] = torch.nan
    return cache


def beyond(indices: Tensor, case: Case, cache: Tensor) -> Tensor:
    """Indices from s_kv on moved beyond the cache's last row, which the last page may have past s_kv."""
    rows = cache.shape[0] * cache.shape[1]
    return indices.masked_fill((indices >= case.s_kv) & (indices < rows), rows)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("extra", [False, True], ids=["one cache", "two caches"])
@pytest.mark.parametrize(("page_tokens", "gap_rows"), [(64, 0), (1, 0), (1, 2), (61, 0), (16, 1), (256, 3)])
@pytest.mark.parametrize("case", DECODE.values(), ids=DECODE)
def test_sparse_decode(case: Case, page_tokens: int, gap_rows: int, extra: bool, dtype: str) -> None:
    q = normal(BATCH, case.s_q, case.h_q, case.d, seed=0, dtype=DTYPES[dtype])
    cache = paged(case, page_tokens, DTYPES[dtype], seed=1, gap_rows=gap_rows)
    indices = beyond(case.indices(BATCH, case.s_q), case, cache)
    options = {"attn_sink": case.attn_sink(), "topk_length": case.lengths(BATCH)}
    rows, slots = cache[:, :, 0].flatten(0, 1), per_token(indices, options["topk_length"])
    if extra:
        second = paged(case, 5, DTYPES[dtype], seed=6, gap_rows=0)
        second_indices = beyond(case.indices(BATCH, case.s_q, seed=7), case, second)
        second_lengths = None if options["topk_length"] is None else options["topk_length"].flip(0)
        options |= {
            "extra_k_cache": second,
            "extra_indices_in_kvcache": second_indices,
            "extra_topk_length": second_lengths,
        }
        moved = per_token(second_indices, second_lengths)
        count = second.shape[0] * second.shape[1]
        moved = torch.where((moved >= 0) & (moved < count), moved.long() + len(rows), -1)
        slots = torch.cat([torch.where(slots < len(rows), slots, -1).long(), moved], dim=1)
        rows = torch.cat([rows, second[:, :, 0].flatten(0, 1)])
    out, lse = flash_mla_with_kvcache(
        q, cache, None, None, case.d_v, *get_mla_metadata(), softmax_scale=0.7, indices=indices, **options
    )
    expected, _, expected_lse = expect(q.flatten(0, 1), rows, slots, d_v=case.d_v, scale=0.7, sink=options["attn_sink"])
    names = ("float32", "lse")
    if dtype == "bfloat16":
        names = ("flash_mla sparse decode out", "flash_mla sparse decode lse")
    assert_close(out.flatten(0, 1), expected, tolerance=names[0])
    assert_close(lse.transpose(1, 2).flatten(0, 1), expected_lse, tolerance=names[1])


def per_token(indices: Tensor, lengths: Tensor | None) -> Tensor:
    repeated = None if lengths is None else lengths.repeat_interleave(indices.shape[1])
    return first_slots(indices.flatten(0, 1), repeated)


def test_sparse_over_everything_is_dense() -> None:
    cache, q = normal(6, 16, 1, 72, seed=1), normal(2, 3, 8, 72, seed=0)
    table = torch.tensor([[3, 1, 0], [5, 2, 4]], dtype=torch.int32)
    lengths = torch.tensor([48, 48], dtype=torch.int32)
    indices = (table.long()[:, :, None] * 16 + torch.arange(16)).flatten(1).int()[:, None].repeat(1, 3, 1)
    dense = flash_mla_with_kvcache(q, cache, table, lengths, 64, *get_mla_metadata())
    sparse = flash_mla_with_kvcache(q, cache, None, None, 64, *get_mla_metadata(), indices=indices)
    assert_close(sparse[0], dense[0], tolerance="float32")
    assert_close(sparse[1], dense[1], tolerance="lse")


SMALL = Case(2, 90, 16, 4, d=40, d_v=32)


def decode(metadata: object, *, topk: int = 16, topk_length: Tensor | None = None) -> tuple[Tensor, Tensor]:
    q, cache = normal(BATCH, 2, 4, 40, seed=0), paged(SMALL, 16, torch.float32, seed=1, gap_rows=0)
    indices = beyond(SMALL.indices(BATCH, 2), SMALL, cache)[..., :topk]
    return flash_mla_with_kvcache(q, cache, None, None, 32, metadata, indices=indices, topk_length=topk_length)


def test_metadata_serves_every_layer_and_other_indices() -> None:
    metadata, _ = get_mla_metadata(torch.full((BATCH,), 90, dtype=torch.int32), 2 * 4, 1, 4, False, 16)
    for _ in range(2):
        assert_close(decode(metadata)[0], decode(get_mla_metadata()[0])[0], tolerance="exact")


def test_metadata_refuses_other_choices() -> None:
    metadata, _ = get_mla_metadata()
    lengths = torch.full((BATCH,), 7, dtype=torch.int32)
    decode(metadata, topk_length=lengths)
    with pytest.raises(StalePlanError, match=r"^topk_length: expected"):
        decode(metadata, topk_length=lengths + 1)
    with pytest.raises(StalePlanError, match=r"^topk: expected 16, got 15"):
        decode(metadata, topk=15, topk_length=lengths)


def test_pages_that_share_rows() -> None:
    """Cached pages that are one page seen several times: an index of -1 must not become one of its rows."""
    page, q = normal(1, 8, 1, 40, seed=1), normal(1, 2, 3, 40, seed=0)
    indices = torch.tensor([[[-1, 9, 17, 25, 32], [-1, 32, -9, 40, 33]]], dtype=torch.int32)
    cache = page.expand(4, 8, 1, 40)
    out, lse = flash_mla_with_kvcache(q, cache, None, None, 32, *get_mla_metadata(), indices=indices)
    row = page[0, 1, 0, :32].expand(3, 32)
    assert_close(out[0, 0], row.double(), tolerance="float32")
    assert not out[0, 1].any()
    assert (lse[0, :, 1] == torch.inf).all()
