"""FlashMLA's dense test data and the formula it checks, for tests of latentkv.flash_mla.

The data are as hostile as theirs: what must not be read is NaN, unused table entries are a huge page number. Here K is
also strided: KV heads stand apart, and gaps of NaN lie between pages.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch
from torch import Tensor

UNUSED_ENTRY = 2147480000
PAGE_TOKENS = 64
# Different pages of random rows: a large cache repeats them, so that making it does not take longer than reading it.
POOL_PAGES = 509


@dataclass(frozen=True)
class DenseCase:
    """The sizes of one case of FlashMLA's dense decoding test, with its names."""

    b: int
    s_q: int
    s_k: int
    h_q: int
    h_kv: int
    is_varlen: bool
    is_causal: bool
    have_zero_seqlen_k: bool = False
    d: int = 576
    dv: int = 512
    page_tokens: int = PAGE_TOKENS
    dtype: torch.dtype = torch.bfloat16

    def __str__(self) -> str:
        flags = f"{'-varlen' * self.is_varlen}{'-causal' * self.is_causal}{'-zeros' * self.have_zero_seqlen_k}"
        return f"b{self.b}-q{self.s_q}-k{self.s_k}-h{self.h_q}:{self.h_kv}{flags}"


@dataclass(frozen=True)
class DenseData:
    """What `flash_mla_with_kvcache` is given: q [B, s_q, H, D], k_cache [pages, P, G, D] and the batch's tables."""

    q: Tensor
    k_cache: Tensor
    block_table: Tensor
    cache_seqlens: Tensor


def dense_data(case: DenseCase, *, seed: int = 0) -> DenseData:
    """Numbers of standard deviation 0.1 within -1 ... 1, and lengths normal around s_k, as FlashMLA draws them."""
    generator = torch.Generator().manual_seed(seed)
    lengths = _lengths(case, seed)
    counts = [-(-length // case.page_tokens) for length in lengths]
    width = max(counts) + 2
    order = torch.randperm(sum(counts) + 3, generator=generator).to(torch.int32)
    table = torch.full((case.b, width), UNUSED_ENTRY, dtype=torch.int32)
    pool = _normal(min(POOL_PAGES, len(order)), case.page_tokens, case.h_kv, case.d, generator=generator).to(case.dtype)
    # One token more per page than is used, so that pages are not adjacent.
    padded = torch.full((len(order), case.page_tokens + 1, case.h_kv, case.d), torch.nan, dtype=case.dtype)
    k_cache = padded[:, : case.page_tokens]
    start = 0
    for index, (length, count) in enumerate(zip(lengths, counts, strict=True)):
        pages = order[start : start + count]
        start += count
        table[index, :count] = pages
        k_cache[pages.long()] = pool[torch.randint(len(pool), (count,), generator=generator)]
        if length % case.page_tokens:
            k_cache[int(pages[-1]), length % case.page_tokens :] = torch.nan
    q = _normal(case.b, case.s_q, case.h_q, case.d + 8, generator=generator).to(case.dtype)[..., : case.d]
    return DenseData(q, k_cache, table, torch.tensor(lengths, dtype=torch.int32))


def dense_reference(
    data: DenseData, *, dv: int, causal: bool, scale: float | None = None, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor]:
    """out [B, s_q, H, dv] and lse [B, H, s_q] computed in `dtype`; zeros and +inf for tokens that see nothing."""
    batch, new, heads, width = data.q.shape
    page_tokens, groups = data.k_cache.shape[1:3]
    out = torch.zeros(batch, new, heads, dv, dtype=dtype)
    lse = torch.full((batch, heads, new), torch.inf, dtype=dtype)
    for index, length in enumerate(data.cache_seqlens.tolist()):
        pages = data.block_table[index, : -(-length // page_tokens)].long()
        keys = data.k_cache[pages].flatten(0, 1)[:length].transpose(0, 1).contiguous().to(dtype)  # [G, S, D]
        query = data.q[index].to(dtype).unflatten(1, (groups, -1)).transpose(0, 1)  # [G, s_q, H/G, D]
        scores = (query.flatten(1, 2) @ keys.transpose(1, 2)).unflatten(1, (new, -1)) * (scale or width**-0.5)
        for token in range(new):
            seen = max(0, length - new + token + 1) if causal else length
            if seen:
                own = scores[:, token, :, :seen]
                lse[index, :, token] = own.logsumexp(dim=-1).flatten()
                out[index, token] = (own.softmax(dim=-1) @ keys[:, :seen, :dv]).flatten(0, 1)
    return out, lse


def _lengths(case: DenseCase, seed: int) -> list[int]:
    draw = random.Random(seed)
    lengths = [case.s_k] * case.b
    if case.is_varlen:
        lengths = [max(int(draw.normalvariate(case.s_k, case.s_k / 2)), case.s_q) for _ in lengths]
    if case.have_zero_seqlen_k:
        lengths = [0 if draw.random() < 0.5 else length for length in lengths]
    return lengths


def _normal(*shape: int, generator: torch.Generator) -> Tensor:
    return (torch.randn(shape, generator=generator) / 10).clamp_(-1.0, 1.0)
