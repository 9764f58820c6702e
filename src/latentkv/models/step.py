"""What one forward pass shares between its layers: the batch, the rotation angles, the attention plan, the kernels."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from latentkv.backends.base import Form, Plan, Request
from latentkv.backends.guard import Guard, Watch
from latentkv.backends.kernels import Kernels
from latentkv.cache.batch import Batch


@dataclass(frozen=True)
class Execution:
    """Who computes: the attention backend by name, the form MLA takes, and the kernels for everything else.

    deterministic: of attention alone, see `attend`
    integer: whether attention may round queries and weights over rows of codes, see `attend`
    guard: chooses the backend step by step instead, and replaces one that fails; `backend` then says nothing
    """

    kernels: Kernels
    backend: str = "auto"
    form: Form = "auto"
    deterministic: bool = False
    integer: bool = True
    guard: Guard | None = None

    def begin(self, batch: Batch, angles: tuple[Tensor, Tensor]) -> Step:
        """A forward pass over `batch`."""
        watch = self.guard.begin(batch) if self.guard is not None else None
        return Step(batch, angles, self, watch=watch)


@dataclass
class Step:
    """One forward pass. `request` and `plan` are made by the first layer that attends, and then serve all the others.

    angles: cosine and sine [T, pairs] float32 of the batch's positions
    watch:  where there is a guard: who computes attention, in place of `plan`
    rows:   of a step made by `last_tokens`: [M] int64, which tokens of the whole step it is about
    """

    batch: Batch
    angles: tuple[Tensor, Tensor]
    execution: Execution
    request: Request | None = None
    plan: Plan | None = None
    watch: Watch | None = None
    rows: Tensor | None = None

    def last_tokens(self, rows: Tensor) -> Step | None:
        """The step over these tokens alone, after all cache rows were written; None where `Batch.last_tokens` is."""
        batch = self.batch.last_tokens(rows)
        if batch is None:
            return None
        cosine, sine = self.angles
        watch = self.watch.over(batch) if self.watch is not None else None
        return Step(batch, (cosine[rows], sine[rows]), self.execution, watch=watch, rows=rows)
