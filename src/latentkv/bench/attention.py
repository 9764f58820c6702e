"""Attention over the latent cache near the machine's ceilings: decode, prefill, threads, and torch's own attention."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from latentkv.attend import request_for
from latentkv.backends.native import NativeBackend
from latentkv.bench.kernel_cases import Case, Options
from latentkv.cache.batch import Batch
from latentkv.cache.codec import encode_rows
from latentkv.cache.latent import LatentCache, LayerCache
from latentkv.cache.layout import CacheLayout, mla_row
from latentkv.ops.absorb import UpProjection

L, R, N, V, PAGE = 512, 64, 128, 128, 64
SCALE = (N + R) ** -0.5


# Coded rows are compared with those of bf16 here.
FORMAT_HEADS, FORMAT_TOKENS = (1, 2, 16, 64, 128), 16384
CODED = ("int8", "int6", "int4", "fp8")


def context(batch: int, tokens: int, new: int, format: str = "bf16") -> tuple[LayerCache, Batch]:
    """A cache of random rows whose pages are in random order, and a batch over it."""
    pages = -(-tokens // PAGE)
    cache = LatentCache(CacheLayout(mla_row(format, kv_lora_rank=L, qk_rope_head_dim=R), 1, PAGE), pages * batch)
    rows = cache.layer(0).rows
    parts = {"latent": torch.randn(PAGE, L), "rope": torch.randn(PAGE, R)}
    rows.copy_(encode_rows(cache.layout.row, parts).expand(rows.shape))
    order = torch.randperm(pages * batch).view(batch, pages).tolist()
    lengths = {"query_lens": [new] * batch, "context_lens": [tokens] * batch}
    return cache.layer(0), Batch.build(**lengths, pages=order, page_tokens=PAGE)


def pairs(new: int, tokens: int) -> int:
    """Query and context token pairs under the causal mask."""
    return new * tokens - new * (new - 1) // 2


def decode(
    name: str,
    *,
    isa: str | None,
    heads: int,
    tokens: int,
    batch: int,
    threads: int,
    new: int = 1,
    format: str = "bf16",
) -> Case:
    """Absorbed queries over rows of a format."""
    cache, where = context(batch, tokens, new, format)
    query = torch.randn(batch * new, heads, L + R).bfloat16()
    backend = NativeBackend(isa=isa)
    request = request_for(query, cache, where)
    torch.set_num_threads(threads)
    plan = backend.plan(request, where)

    def call() -> object:
        return backend.run(plan, request, query, cache, where, scale=SCALE, causal=True, up=None)

    flops = 2.0 * batch * heads * pairs(new, tokens) * (2 * L + R)
    return Case(name, call, threads, flops, float(batch * tokens * cache.layout.row_bytes))


def prefill(name: str, *, isa: str | None, heads: int, new: int, tokens: int, threads: int) -> Case:
    """Head form of a chunk of `new` tokens; the expansion's operations are counted too."""
    cache, where = context(1, tokens, new)
    query = torch.randn(new, heads, N + R).bfloat16()
    up = UpProjection(torch.randn(heads, N, L).bfloat16() * L**-0.5, torch.randn(heads, V, L).bfloat16() * L**-0.5)
    backend = NativeBackend(isa=isa)
    request = request_for(query, cache, where, up=up, form="head")
    plan = backend.plan(request, where)

    def call() -> object:
        return backend.run(plan, request, query, cache, where, scale=SCALE, causal=True, up=up)

    flops = 2.0 * heads * (pairs(new, tokens) * (N + R + V) + tokens * L * (N + V))
    return Case(name, call, threads, flops)


def torch_sdpa(name: str, *, heads: int, tokens: int, threads: int) -> Case:
    """torch's attention given the latent as one key and value, and the heads as queries: no paging, no gathering."""
    rows = torch.randn(1, 1, tokens, L + R).bfloat16()
    query = torch.randn(1, 1, heads, L + R).bfloat16()
    value: Tensor = rows[..., :L].contiguous()

    def call() -> object:
        return torch.nn.functional.scaled_dot_product_attention(query, rows, value, scale=SCALE)

    flops = 2.0 * heads * tokens * (2 * L + R)
    return Case(name, call, threads, flops)


def attention_cases(options: Options) -> list[Case]:
    """Those of the table whose name holds `options.only`; the memory of the others is not touched."""
    isa, threads = options.isa, options.threads
    wishes = [
        (heads, tokens, batch, threads, 1)
        for heads in (1, 2, 8, 16, 64, 128)
        for tokens, batch in ((4096, 1), (16384, 1), (32768, 1), (4096, 8))
    ]
    wishes += [(heads, 16384, 1, 1, 1) for heads in (1, 16, 128) if threads > 1]
    wishes += [(16, 4096, 1, threads, 4)]
    makers: dict[str, Callable[[str], Case]] = {}
    for heads, tokens, batch, count, new in wishes:
        several = f" new={new}" if new > 1 else ""
        name = f"decode H={heads} context={tokens} batch={batch}{several} threads={count}"
        makers[name] = partial(decode, isa=isa, heads=heads, tokens=tokens, batch=batch, threads=count, new=new)
        if heads not in FORMAT_HEADS or (tokens, batch, count) != (FORMAT_TOKENS, 1, threads):
            continue
        # Right after bf16's, so that the machine's moods hit both.
        for format in CODED:
            same = partial(decode, isa=isa, heads=heads, tokens=tokens, batch=batch, threads=count, format=format)
            makers[f"{name} {format}"] = same
    for new, tokens in ((2048, 2048), (8192, 8192), (512, 8192)):
        name = f"prefill head form H=16 new={new} context={tokens} threads={threads}"
        makers[name] = partial(prefill, isa=isa, heads=16, new=new, tokens=tokens, threads=threads)
    for heads in (16, 128):
        name = f"torch SDPA H={heads} context=16384 threads={threads}"
        makers[name] = partial(torch_sdpa, heads=heads, tokens=16384, threads=threads)
    return [make(name) for name, make in makers.items() if options.only in name]
