"""The same tokens through one model once per cache format, each with a real cache of that format.

Every token's row is encoded before anything attends to it, so that a token sees its own chunk, too, as it is stored.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from latentkv.cache.batch import Batch
from latentkv.cache.latent import LatentCache
from latentkv.cache.layout import Format, layout_for
from latentkv.models.model import Model


class Runs:
    """One sequence of at most `tokens` tokens in a cache of each format; position 0 begins another sequence."""

    def __init__(self, model: Model, formats: Sequence[Format], *, tokens: int) -> None:
        self._model = model
        self._caches: dict[str, LatentCache] = {}
        for format in formats:
            layout = layout_for(model.geometry, format)
            self._caches[format.name] = LatentCache(layout, layout.pages_for(tokens), device=model.device)

    @property
    def names(self) -> tuple[str, ...]:
        """The formats, in the order they were given."""
        return tuple(self._caches)

    def bytes_per_token(self, name: str) -> int:
        """Bytes that a token takes in a format, all layers together."""
        return self._caches[name].layout.bytes_per_token

    def log_probs(self, name: str, token_ids: Tensor, *, start: int, rows: Tensor) -> Tensor:
        """Log-probabilities [M, vocab] float32 of what follows tokens `rows` [M] of token_ids [T] int64.

        The tokens stand at positions start ... start + T - 1; those before were given to earlier calls.
        """
        cache = self._caches[name]
        batch = Batch.build(
            query_lens=[len(token_ids)],
            context_lens=[start + len(token_ids)],
            pages=[range(cache.num_pages)],
            page_tokens=cache.layout.page_tokens,
        )
        with torch.inference_mode():
            return self._model.forward(token_ids, batch, cache, logit_rows=rows).log_softmax(dim=-1)
