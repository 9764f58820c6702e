"""The portable backend: ragged paged attention in plain PyTorch, for any size, format and device.

It gathers one sequence's rows at a time and hands them to ops/attention.py in float32. Slow and simple: what the
fast backends are compared with, and what runs when they cannot. A sequence is computed the same way in any company, so
that a deterministic request needs nothing more; the order of sums within one product is torch's.
"""

from __future__ import annotations

import torch
from torch import Tensor

from latentkv.backends.base import Attended, Plan, Request, Support
from latentkv.backends.cost import cheaper_form
from latentkv.cache.batch import Batch
from latentkv.cache.latent import LayerCache
from latentkv.ops.absorb import UpProjection, absorb_query, expand_output
from latentkv.ops.attention import attend_head, attend_kv, attend_latent

# Scores of one tile, heads x new tokens x context: bounds the working memory of a long prompt to 256 MiB.
TILE_SCORES = 2**26


class PortableBackend:
    """Plain PyTorch over any cache; see the module docstring."""

    name = "portable"

    def supports(self, request: Request) -> Support:
        """It runs everything."""
        del request
        return Support(ok=True)

    def plan(self, request: Request, batch: Batch) -> Plan:
        """The cheaper form for each sequence, unless the request names one."""
        return Plan(self.name, request, batch.lengths, tuple(_form(request, *lengths) for lengths in batch.lengths))

    def run(
        self,
        plan: Plan,
        request: Request,
        query: Tensor,
        cache: LayerCache,
        batch: Batch,
        *,
        scale: float,
        causal: bool,
        up: UpProjection | None,
    ) -> Attended:
        """See `Backend.run`."""
        width = {"mla": request.v_head_dim, "absorbed": request.kv_lora_rank, "kv": request.v_head_dim}[request.kind]
        out = query.new_zeros(query.shape[0], request.num_heads, width)
        lse = torch.full(query.shape[:2], -torch.inf, dtype=torch.float32, device=query.device)
        start = 0
        for index, (query_len, context_len) in enumerate(plan.lengths):
            if query_len:
                parts = cache.read(_context_slots(batch, index, context_len))
                for begin, stop in _tiles(query_len, context_len, request.num_heads):
                    rows = slice(start + begin, start + stop)
                    first_visible = context_len - query_len + begin + 1 if causal else None
                    part_out, part_lse = _attend(
                        request, plan.forms[index], query[rows].float(), parts, up, scale, first_visible
                    )
                    out[rows] = part_out.to(out.dtype)
                    lse[rows] = part_lse
            start += query_len
        return Attended(out, lse, f"{self.name}:{'+'.join(sorted(set(plan.forms)))}")


def _form(request: Request, query_len: int, context_len: int) -> str:
    if request.kind == "kv":
        return "kv"
    if request.kind == "absorbed":
        return "latent"
    if request.form != "auto":
        return request.form
    return cheaper_form(request, query_len=query_len, context_len=context_len)


def _attend(
    request: Request,
    form: str,
    query: Tensor,
    parts: dict[str, Tensor],
    up: UpProjection | None,
    scale: float,
    first_visible: int | None,
) -> tuple[Tensor, Tensor]:
    if form == "kv":
        key, value = (
            parts[name].view(-1, request.num_key_value_heads, width)
            for name, width in (("key", request.head_dim), ("value", request.v_head_dim))
        )
        return attend_kv(query, key, value, scale=scale, first_visible=first_visible)
    latent, rope = parts["latent"], parts["rope"]
    if up is None:
        q_latent, q_rope = query.tensor_split([request.kv_lora_rank], dim=-1)
        return attend_latent(q_latent, q_rope, latent, rope, scale=scale, first_visible=first_visible)
    q_nope, q_rope = query.tensor_split([request.qk_nope_head_dim], dim=-1)
    wide = UpProjection(up.w_uk.float(), up.w_uv.float())
    if form == "head":
        return attend_head(q_nope, q_rope, latent, rope, wide, scale=scale, first_visible=first_visible)
    absorbed = absorb_query(q_nope, wide.w_uk) if request.qk_nope_head_dim else None
    o_latent, lse = attend_latent(absorbed, q_rope, latent, rope, scale=scale, first_visible=first_visible)
    return expand_output(o_latent, wide.w_uv), lse


def _context_slots(batch: Batch, index: int, context_len: int) -> Tensor:
    """Cache rows of a sequence's context, in order: [context_len] int64. Unused page-table slots are not read."""
    pages = batch.page_table[index, : -(-context_len // batch.page_tokens)].long()
    offsets = torch.arange(batch.page_tokens, device=pages.device)
    return (pages[:, None] * batch.page_tokens + offsets).flatten()[:context_len]


def _tiles(query_len: int, context_len: int, heads: int) -> list[tuple[int, int]]:
    rows = max(1, TILE_SCORES // max(1, heads * context_len))
    return [(begin, min(begin + rows, query_len)) for begin in range(0, query_len, rows)]
