"""What a backend must answer and do: `supports`, `plan`, `run`. Knows no backend by name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

from torch import Tensor

from latentkv.cache.batch import Batch
from latentkv.cache.latent import LayerCache
from latentkv.errors import StalePlanError
from latentkv.ops.absorb import UpProjection

Form = Literal["auto", "latent", "head"]
Kind = Literal["mla", "absorbed", "kv"]


@dataclass(frozen=True, slots=True)
class Request:
    """The sizes and dtypes of one call; enough for a backend to say whether it can run it.

    kind: "mla"      queries [T, H, N+Rq] and an up-projection; output [T, H, V]
          "absorbed" queries [T, H, L+Rq] already multiplied by W_UK; output [T, H, L] (still latent)
          "kv"       queries [T, H, D] against key and value rows of G heads; output [T, H, V]
    deterministic: the same bits whatever else is in the batch and, where the backend says so, for any threads
    integer: over rows of codes, whether queries and weights may be rounded to 15 bits and a sign where that is faster
    rope_groups: blocks of the RoPE key; head h's query (width Rq = R / rope_groups) lies in block h*rope_groups//H
    """

    kind: Kind
    num_heads: int
    format: str
    page_tokens: int
    query_dtype: str
    device: str
    form: Form
    deterministic: bool = False
    integer: bool = True
    kv_lora_rank: int = 0
    qk_rope_head_dim: int = 0
    qk_nope_head_dim: int = 0
    v_head_dim: int = 0
    rope_groups: int = 1
    num_key_value_heads: int = 1
    head_dim: int = 0


@dataclass(frozen=True, slots=True)
class Support:
    """Whether a backend can run a request and, when it cannot, why."""

    ok: bool
    reason: str = ""


@dataclass(frozen=True)
class Plan:
    """What a backend decided for one request and batch: reusable over the layers, refused for any other."""

    backend: str
    request: Request
    lengths: tuple[tuple[int, int], ...]
    forms: tuple[str, ...]

    def check(self, request: Request, batch: Batch) -> None:
        """Raise StalePlanError unless the plan was made for this request and exactly these lengths."""
        if self.request != request:
            raise StalePlanError(f"plan: made for {self.request}, used for {request}. Make a plan for each.")
        self.check_lengths(batch)

    def check_lengths(self, batch: Batch) -> None:
        """Raise StalePlanError unless the plan was made for exactly these lengths."""
        if self.lengths != batch.lengths:
            raise StalePlanError(
                "plan: made for other (query, context) lengths than this batch has. Make a new plan for each step."
            )


@dataclass(frozen=True)
class Attended:
    """The result of one attention call.

    out:  [T, H, V] (or [T, H, L] for absorbed queries) in the query's dtype; zeros where nothing is visible
    lse:  [T, H] float32, natural log of the sum of exponentials, -inf where nothing is visible
    path: what ran, for instance "portable:latent"
    """

    out: Tensor
    lse: Tensor
    path: str


class Backend(Protocol):
    """Computes attention over the cache. Stateless: everything it needs is in its arguments."""

    name: str

    def supports(self, request: Request) -> Support:
        """Whether `run` can serve this request; cheap, no side effects."""
        ...

    def plan(self, request: Request, batch: Batch) -> Plan:
        """Choose forms and splits for a batch's lengths; one plan serves every layer of a step."""
        ...

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
        """Compute it. Arguments were validated by `attend`; the cache and the query are read only."""
        ...
