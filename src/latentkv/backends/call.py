"""One attention call as an object: what a backend was asked, so that another can be asked the same."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from latentkv.backends.base import Attended, Backend, Plan, Request
from latentkv.cache.batch import Batch
from latentkv.cache.latent import LayerCache
from latentkv.ops.absorb import UpProjection


@dataclass(frozen=True, slots=True)
class Call:
    """The arguments of `Backend.run`, without a plan; the causal call of a model's layer unless it says otherwise.

    query: [T, H, width] float32 | bfloat16; read only, like everything here
    """

    request: Request
    query: Tensor
    cache: LayerCache
    batch: Batch
    scale: float
    up: UpProjection | None
    causal: bool = True

    def run(self, backend: Backend, plan: Plan | None = None) -> Attended:
        """What `backend` computes for this call, with a plan of its own unless one is given."""
        plan = plan if plan is not None else backend.plan(self.request, self.batch)
        return backend.run(
            plan, self.request, self.query, self.cache, self.batch, scale=self.scale, causal=self.causal, up=self.up
        )
