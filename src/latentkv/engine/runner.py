"""A step's tokens as one call of the model. The only place where the engine meets the model and the cache's tensors."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from latentkv.cache.batch import Batch, integers
from latentkv.cache.latent import LatentCache
from latentkv.engine.state import Step
from latentkv.geometry import Geometry


class Model(Protocol):
    """What the engine asks of a model. It keeps no state between calls: everything it remembers is in the cache."""

    @property
    def vocab_size(self) -> int:
        """Token ids are below this."""
        ...

    @property
    def max_position_embeddings(self) -> int:
        """The longest context, in tokens."""
        ...

    @property
    def eos_token_ids(self) -> frozenset[int]:
        """Tokens that end a text."""
        ...

    @property
    def identity(self) -> bytes:
        """Differs between models whose cache rows differ for the same tokens."""
        ...

    @property
    def geometry(self) -> Geometry:
        """What a cache row of this model consists of."""
        ...

    @property
    def device(self) -> torch.device:
        """Where token ids and the cache have to be."""
        ...

    def forward(self, token_ids: Tensor, batch: Batch, cache: LatentCache, *, logit_rows: Tensor) -> Tensor:
        """Logits [M, vocab] float32 of rows logit_rows [M] int64 of token_ids [T] int64. Writes T rows to the cache."""
        ...


def run_step(model: Model, cache: LatentCache, step: Step) -> Tensor:
    """Compute a step; logits [M, vocab] float32, one for each of `step.logit_rows`. Mutates the cache."""
    batch = Batch.build(
        query_lens=[chunk.count for chunk in step.chunks],
        context_lens=[chunk.start + chunk.count for chunk in step.chunks],
        pages=[chunk.sequence.pages for chunk in step.chunks],
        page_tokens=cache.layout.page_tokens,
    )
    token_ids = [token for chunk in step.chunks for token in chunk.token_ids]
    with torch.inference_mode():
        return model.forward(
            integers(token_ids).to(model.device),
            batch,
            cache,
            logit_rows=integers(step.logit_rows).to(model.device),
        )
