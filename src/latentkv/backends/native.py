"""The native backend: the C++ kernel over float32 and bfloat16 rows in CPU memory, on the best instruction set here.

It reads pages in place. What an item of work is and how it is computed: csrc/kernels/attention.h.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from latentkv.backends.base import Attended, Plan, Request, Support
from latentkv.backends.cost import cheaper_form
from latentkv.backends.isa import find_isa, native_missing
from latentkv.backends.native_plan import Work, divide
from latentkv.cache.batch import Batch
from latentkv.cache.latent import LayerCache
from latentkv.ops.absorb import UpProjection, absorb_query, expand_output

QUERY_DTYPES = ("float32", "bfloat16")
FORMATS = ("f32", "bf16")


@dataclass(frozen=True)
class NativePlan(Plan):
    """A plan with the kernel's work records."""

    work: Work


@dataclass(frozen=True)
class NativeBackend:
    """The C++ kernel; see the module docstring.

    isa:           instruction set; None for what LATENTKV_ISA forces, or else the best this CPU has
    deterministic: the same bits for any number of threads and any other sequences in the batch
    """

    isa: str | None = None
    deterministic: bool = False
    name: str = "native"

    def supports(self, request: Request) -> Support:
        """CPU, float32 or bfloat16 rows and queries, and the extension."""
        if request.device != "cpu":
            return Support(ok=False, reason=f"runs on the CPU only, not on {request.device}")
        if request.query_dtype not in QUERY_DTYPES or request.format not in FORMATS:
            return Support(ok=False, reason=f"no kernel for {request.query_dtype} queries over {request.format} rows")
        reason = native_missing()
        return Support(ok=not reason, reason=reason)

    def plan(self, request: Request, batch: Batch) -> NativePlan:
        """Forms by cost, and the work divided over torch's threads."""
        forms = tuple("kv" if request.kind == "kv" else "latent" for _ in batch.lengths)
        work = divide(
            batch.lengths,
            chosen=range(len(forms)),
            heads=request.num_heads,
            groups=request.num_key_value_heads if request.kind == "kv" else 1,
            threads=torch.get_num_threads(),
            deterministic=self.deterministic,
        )
        return NativePlan(self.name, batch.lengths, forms, work)

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
        isa = find_isa(self.isa)
        lse = torch.full(query.shape[:2], -torch.inf, dtype=torch.float32)
        groups, latent = 1, request.kv_lora_rank
        if request.kind == "kv":
            groups, width = request.num_key_value_heads, request.head_dim
            a, b, out_dtype = query, None, query.dtype
            key, value = (width, width), (groups * width, request.v_head_dim)
        else:
            a, b = query.tensor_split([request.qk_nope_head_dim if up is not None else latent], dim=-1)
            out_dtype = query.dtype if up is None else torch.float32
            if up is not None:
                a = absorb_query(a.float(), up.w_uk.float()) if request.qk_nope_head_dim else None
            key, value = (latent + request.qk_rope_head_dim, 0), (-1, 0)
        out = torch.zeros(
            query.shape[0],
            request.num_heads,
            request.v_head_dim if groups > 1 or request.kind == "kv" else latent,
            dtype=out_dtype,
        )
        isa.attention(
            out,
            lse,
            a,
            b,
            cache.rows,
            batch.page_table,
            plan.work.records,
            key,
            value,
            groups,
            request.rope_groups,
            scale,
            causal,
            plan.work.threads,
        )
        if up is not None:
            out = expand_output(out, up.w_uv.float()).to(query.dtype)
        return Attended(out, lse, f"{self.name}:{isa.name}:{'+'.join(sorted(set(plan.forms)))}")
