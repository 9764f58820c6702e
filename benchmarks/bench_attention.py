"""How near attention comes to the machine's ceilings: decode, prefill, threads, and torch's own attention.

Prints a table; the last line is JSON. Every measurement is repeated in turns with the others, with the ceilings taken
right before it: a share is a case's rate over the ceiling of the same moment, so that what slows the machine then hits
both. The median counts; the best share is shown beside it.

    python benchmarks/bench_attention.py [--isa avx2] [--threads 2] [--repeats 7] [--only decode]
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from ceilings import Ceilings
from torch import Tensor

from latentkv.attend import request_for
from latentkv.backends.isa import find_isa
from latentkv.backends.native import NativeBackend
from latentkv.cache.batch import Batch
from latentkv.cache.latent import LatentCache, LayerCache
from latentkv.cache.layout import CacheLayout, mla_row
from latentkv.ops.absorb import UpProjection

L, R, N, V, PAGE = 512, 64, 128, 128, 64
SCALE = (N + R) ** -0.5
# Short calls are repeated, as layers follow each other: as long as the ceilings beside them take.
LEAST_SECONDS = 0.02


@dataclass
class Case:
    """One thing to measure. `flops` and `read_bytes` are what must be done at least."""

    name: str
    call: Callable[[], object]
    threads: int
    flops: float
    read_bytes: float = 0.0
    times: list[float] = field(default_factory=list)
    shares: list[tuple[float, float]] = field(default_factory=list)

    def measure(self, ceilings: Ceilings) -> None:
        """Run once and keep the time, and the shares of the ceilings of this moment."""
        gflops, read_gbs = ceilings.sample()
        torch.set_num_threads(self.threads)
        calls = 1 if not self.times else max(1, round(LEAST_SECONDS / min(self.times)))
        start = time.perf_counter()
        for _ in range(calls):
            self.call()
        seconds = (time.perf_counter() - start) / calls
        self.times.append(seconds)
        self.shares.append((self.flops / seconds / 1e9 / gflops, self.read_bytes / seconds / 1e9 / read_gbs))

    @property
    def seconds(self) -> float:
        """The median."""
        return statistics.median(self.times)


def context(batch: int, tokens: int, new: int) -> tuple[LayerCache, Batch]:
    """A cache of random rows whose pages are in random order, and a batch over it."""
    pages = -(-tokens // PAGE)
    cache = LatentCache(CacheLayout(mla_row("bf16", kv_lora_rank=L, qk_rope_head_dim=R), 1, PAGE), pages * batch)
    cache.storage.normal_()
    order = torch.randperm(pages * batch).view(batch, pages).tolist()
    lengths = {"query_lens": [new] * batch, "context_lens": [tokens] * batch}
    return cache.layer(0), Batch.build(**lengths, pages=order, page_tokens=PAGE)


def pairs(new: int, tokens: int) -> int:
    """Query and context token pairs under the causal mask."""
    return new * tokens - new * (new - 1) // 2


def decode(isa: str | None, heads: int, tokens: int, batch: int, threads: int, *, new: int = 1) -> Case:
    """Absorbed queries over bf16 rows."""
    cache, where = context(batch, tokens, new)
    query = torch.randn(batch * new, heads, L + R).bfloat16()
    backend = NativeBackend(isa=isa)
    request = request_for(query, cache, where)
    torch.set_num_threads(threads)
    plan = backend.plan(request, where)

    def call() -> object:
        return backend.run(plan, request, query, cache, where, scale=SCALE, causal=True, up=None)

    flops = 2.0 * batch * heads * pairs(new, tokens) * (2 * L + R)
    return Case(
        f"decode H={heads} context={tokens} batch={batch} threads={threads}",
        call,
        threads,
        flops,
        batch * tokens * (L + R) * 2.0,
    )


def prefill(isa: str | None, heads: int, new: int, tokens: int, threads: int) -> Case:
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
    return Case(f"prefill head form H={heads} new={new} context={tokens} threads={threads}", call, threads, flops)


def torch_sdpa(heads: int, tokens: int, threads: int) -> Case:
    """torch's attention given the latent as one key and value, and the heads as queries: no paging, no gathering."""
    rows = torch.randn(1, 1, tokens, L + R).bfloat16()
    query = torch.randn(1, 1, heads, L + R).bfloat16()
    value: Tensor = rows[..., :L].contiguous()

    def call() -> object:
        return torch.nn.functional.scaled_dot_product_attention(query, rows, value, scale=SCALE)

    flops = 2.0 * heads * tokens * (2 * L + R)
    return Case(f"torch SDPA H={heads} context={tokens} threads={threads}", call, threads, flops)


def cases(isa: str | None, threads: int) -> list[Case]:
    """Everything in the table."""
    found = [
        decode(isa, heads, tokens, batch, threads)
        for heads in (1, 2, 8, 16, 64, 128)
        for tokens, batch in ((4096, 1), (16384, 1), (32768, 1), (4096, 8))
    ]
    found += [decode(isa, heads, 16384, 1, 1) for heads in (1, 16, 128)]
    found += [decode(isa, 16, 4096, 1, threads, new=4)]
    found += [prefill(isa, 16, new, tokens, threads) for new, tokens in ((2048, 2048), (8192, 8192), (512, 8192))]
    found += [torch_sdpa(heads, 16384, threads) for heads in (16, 128)]
    return found


def report(found: list[Case]) -> list[dict[str, object]]:
    """The table, and its rows."""
    rows: list[dict[str, object]] = []
    print(f"{'case':58} {'ms':>9} {'GFLOP/s':>9} {'of FMA':>7} {'best':>6} {'GB/s':>7} {'of read':>8} {'best':>6}")
    for case in found:
        of_fma, of_read = zip(*case.shares, strict=True)
        gflops, gbs = case.flops / case.seconds / 1e9, case.read_bytes / case.seconds / 1e9
        row = {
            "case": case.name,
            "ms": round(case.seconds * 1e3, 3),
            "best_ms": round(min(case.times) * 1e3, 3),
            "gflops": round(gflops, 1),
            "share_of_fma": round(statistics.median(of_fma), 3),
            "best_share_of_fma": round(max(of_fma), 3),
            "read_gbs": round(gbs, 2),
            "share_of_read": round(statistics.median(of_read), 3),
            "best_share_of_read": round(max(of_read), 3),
        }
        rows.append(row)
        print(
            f"{case.name:58} {row['ms']:9} {row['gflops']:9} {row['share_of_fma']:7.0%} {max(of_fma):6.0%} "
            f"{row['read_gbs']:7} {row['share_of_read']:8.0%} {max(of_read):6.0%}"
        )
    return rows


def main() -> None:
    """Measure, print, and end with one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--isa", help="instruction set; default: the best")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--only", default="", help="cases whose name holds this")
    options = parser.parse_args()
    isa = find_isa(options.isa)
    found = [case for case in cases(options.isa, options.threads) if options.only in case.name]
    ceilings = {count: Ceilings(isa, count) for count in {1, options.threads}}
    for _ in range(options.repeats + 1):
        for case in found:
            case.measure(ceilings[case.threads])
    for case in found:  # the first touches the memory
        del case.times[0], case.shares[0]
    rows = report(found)
    best = {
        str(count): {"gflops": round(c.gflops, 1), "read_gbs": round(c.read_gbs, 2)} for count, c in ceilings.items()
    }
    print("ceilings by threads:", best)
    print(json.dumps({"isa": isa.name, "threads": options.threads, "ceilings": best, "cases": rows}))


if __name__ == "__main__":
    main()
