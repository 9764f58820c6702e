"""What one forward pass shares between its layers: the batch, the rotation angles, the attention plan, the kernels."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from latentkv.backends.base import Form, Plan
from latentkv.backends.kernels import Kernels
from latentkv.cache.batch import Batch


@dataclass(frozen=True)
class Execution:
    """Who computes: the attention backend by name, the form MLA takes, and the kernels for everything else.

    deterministic: of attention alone, see `attend`
    """

    kernels: Kernels
    backend: str = "auto"
    form: Form = "auto"
    deterministic: bool = False


@dataclass
class Step:
    """One forward pass. `plan` is made by the first layer that attends, and then serves all the others.

    angles: cosine and sine [T, pairs] float32 of the batch's positions
    """

    batch: Batch
    angles: tuple[Tensor, Tensor]
    execution: Execution
    plan: Plan | None = None
