"""The native backend: the C++ kernel over float32, bfloat16, float16 and coded rows in CPU memory, on the best
instruction set here.

It reads pages in place. What an item of work is and how it is computed: csrc/kernels/attention.h; the head form, which
expands the context: native_head.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from latentkv.backends.base import Attended, Plan, Request, Support
from latentkv.backends.cost import Prices, cheaper_form
from latentkv.backends.isa import find_isa, native_missing
from latentkv.backends.native_codes import CODE_FORMATS, native_codes, native_parts
from latentkv.backends.native_head import attend_expanded
from latentkv.backends.native_plan import Work, divide
from latentkv.backends.native_prices import native_prices
from latentkv.backends.native_project import project_columns, project_rows
from latentkv.cache.batch import Batch
from latentkv.cache.latent import LayerCache
from latentkv.errors import StalePlanError
from latentkv.ops.absorb import UpProjection

if TYPE_CHECKING:
    from latentkv._native import Isa

QUERY_DTYPES = ("float32", "bfloat16")
FORMATS = ("f32", "bf16", "f16")
# Floats in a vector of any instruction set at most.
WIDEST_VECTOR = 16


@dataclass(frozen=True)
class NativePlan(Plan):
    """A plan with the kernel's work records for the sequences that are not in head form.

    isa: the kernels; path: what `Attended` tells
    """

    work: Work
    isa: Isa
    path: str


class NativeBackend:
    """The C++ kernel; see the module docstring."""

    name = "native"

    def __init__(self, *, isa: str | None = None, integer: bool = True) -> None:
        """
        isa:     an instruction set; by default what LATENTKV_ISA forces, or else the best this CPU has
        integer: over rows of codes, whether queries and weights may be rounded to 16 bits where that is faster
                 (docs/cache_formats.md tells the error)
        """
        self.isa = isa
        self.integer = integer

    def supports(self, request: Request) -> Support:
        """CPU, float32 or bfloat16 queries over rows of a known format, and the extension."""
        if request.device != "cpu":
            return Support(ok=False, reason=f"runs on the CPU only, not on {request.device}")
        if request.query_dtype not in QUERY_DTYPES or request.format not in (*FORMATS, *CODE_FORMATS.values()):
            return Support(ok=False, reason=f"no kernel for {request.query_dtype} queries over {request.format} rows")
        reason = native_missing()
        return Support(ok=not reason, reason=reason)

    def plan(self, request: Request, batch: Batch) -> NativePlan:
        """Forms by cost, and the work divided over torch's threads; a deterministic request's, not by their number."""
        isa = find_isa(self.isa)
        prices = native_prices(request, isa)
        forms = tuple(_form(request, *lengths, prices) for lengths in batch.lengths)
        work = divide(
            batch.lengths,
            chosen=(index for index, form in enumerate(forms) if form != "head"),
            heads=request.num_heads,
            groups=request.num_key_value_heads if request.kind == "kv" else 1,
            threads=torch.get_num_threads(),
            deterministic=request.deterministic,
        )
        path = f"{self.name}:{isa.name}:{'+'.join(sorted(set(forms)))}"
        return NativePlan(self.name, request, batch.lengths, forms, work, isa, path)

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
        """See `Backend.run`. Raises ShapeError for page ids outside the cache, StalePlanError for another's plan."""
        if not isinstance(plan, NativePlan):
            raise StalePlanError(f"plan: made by backend {plan.backend!r}. Make a new plan with the one that runs it.")
        call = _Call(plan.isa, plan, request, cache, batch, scale, causal, self.integer and request.integer)
        return Attended(*call.run(query, up), path=plan.path)


@dataclass(frozen=True)
class _Call:
    """One `run` and its arguments."""

    isa: Isa
    plan: NativePlan
    request: Request
    cache: LayerCache
    batch: Batch
    scale: float
    causal: bool
    integer: bool

    def run(self, query: Tensor, up: UpProjection | None) -> tuple[Tensor, Tensor]:
        """Output and LSE of all tokens."""
        if up is None or "head" not in self.plan.forms:
            return self._in_place(query, up)
        out = query.new_empty(query.shape[0], self.request.num_heads, self.request.v_head_dim)
        lse = torch.empty(query.shape[:2], dtype=torch.float32)
        start = 0
        others: list[Tensor] = []
        for index, (query_len, _) in enumerate(self.plan.lengths):
            rows = torch.arange(start, start + query_len)
            if self.plan.forms[index] != "head":
                others.append(rows)
            elif query_len:
                out[rows], lse[rows] = self._head(query[start : start + query_len], index, up)
            start += query_len
        if others:
            chosen = torch.cat(others)
            out[chosen], lse[chosen] = self._in_place(query[chosen], up)
        return out, lse

    def _head(self, query: Tensor, index: int, up: UpProjection) -> tuple[Tensor, Tensor]:
        return attend_expanded(
            self.isa,
            query,
            self.cache,
            self.batch,
            index,
            up,
            rope_groups=self.request.rope_groups,
            scale=self.scale,
            causal=self.causal,
        )

    def _in_place(self, query: Tensor, up: UpProjection | None) -> tuple[Tensor, Tensor]:
        """Everything but the head form: the kernel on the cache's own rows."""
        request = self.request
        a: Tensor | None
        b: Tensor | None
        if request.kind == "kv":
            groups, width, value_width = request.num_key_value_heads, request.head_dim, request.v_head_dim
            a, b = query, None
            key, value = (width, width), (groups * width, value_width)
        else:
            groups, value_width = 1, request.kv_lora_rank
            nope = value_width if up is None else request.qk_nope_head_dim
            a, b = (query[..., :nope], query[..., nope:]) if nope else (None, query)
            if up is not None and a is not None:
                a = self._absorbed(a, up)
            key, value = (request.kv_lora_rank + request.qk_rope_head_dim, 0), (-1, 0)
        dtype = query.dtype if up is None else torch.float32
        tokens = query.shape[0]
        rows = tokens if up is None else padded_tokens(tokens, request)
        # The kernel writes every row of a token, rows that see nothing too.
        out = torch.empty(rows, request.num_heads, value_width, dtype=dtype)
        lse = torch.empty(tokens, request.num_heads, dtype=torch.float32)
        if rows > tokens:
            out[tokens:] = 0
        work = self.plan.work
        self.isa.attention(
            out[:tokens] if rows > tokens else out,
            lse,
            a,
            b,
            self.cache.rows,
            self.batch.page_table,
            work.records,
            key,
            value,
            groups,
            request.rope_groups,
            self.scale,
            self.causal,
            work.threads,
            codes=native_codes(self.cache.layout),
            parts=native_parts(self.cache.layout),
            integer=self.integer,
        )
        if up is not None:
            expanded = torch.empty(rows, request.num_heads, request.v_head_dim, dtype=query.dtype)
            project_rows(self.isa, out, up.w_uv, into=expanded)
            out = expanded[:tokens] if rows > tokens else expanded
        return out, lse

    def _absorbed(self, x: Tensor, up: UpProjection) -> Tensor:
        tokens = x.shape[0]
        missing = padded_tokens(tokens, self.request) - tokens
        if not missing:
            return project_columns(self.isa, x, up.w_uk)
        filled = torch.nn.functional.pad(x, (0, 0, 0, 0, 0, missing))
        return project_columns(self.isa, filled, up.w_uk)[:tokens]


def padded_tokens(tokens: int, request: Request) -> int:
    """Tokens that per-head products compute: whole vectors of them with `deterministic`.

    How such a product orders a token's sums depends on how many there are.
    """
    whole = -(-tokens // WIDEST_VECTOR) * WIDEST_VECTOR
    return whole if request.deterministic else tokens


def _form(request: Request, query_len: int, context_len: int, prices: Prices) -> str:
    if request.kind == "kv":
        return "kv"
    if request.kind == "absorbed":
        return "latent"
    if request.form != "auto":
        return request.form
    return cheaper_form(request, query_len=query_len, context_len=context_len, prices=prices)
