"""Feeds chunks of sequences to a model over one paged, poisoned cache, as the engine would."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from latentkv.cache.batch import Batch
from latentkv.cache.latent import LatentCache
from latentkv.cache.layout import layout_for
from latentkv.models.model import Model

PAGE_TOKENS = 16


class Sequences:
    """Sequences by key; `run` computes one step's chunks of some of them."""

    def __init__(self, model: Model, *, page_tokens: int = PAGE_TOKENS, num_pages: int = 64) -> None:
        self.model = model
        self.cache = LatentCache(layout_for(model.geometry, "f32", page_tokens=page_tokens), num_pages)
        self.cache.storage.fill_(torch.nan)
        self.page_tokens = page_tokens
        # Pages are handed out backwards and interleaved, so that page numbers never equal positions.
        self.free = list(range(num_pages))
        self.pages: dict[int, list[int]] = {}
        self.computed: dict[int, int] = {}

    def run(self, chunks: Sequence[tuple[int, Tensor]]) -> list[Tensor]:
        """Run one step; returns each chunk's logits [its tokens, vocab]."""
        for key, tokens in chunks:
            pages = self.pages.setdefault(key, [])
            self.computed[key] = self.computed.get(key, 0) + len(tokens)
            while len(pages) * self.page_tokens < self.computed[key]:
                pages.append(self.free.pop())
        batch = Batch.build(
            query_lens=[len(tokens) for _, tokens in chunks],
            context_lens=[self.computed[key] for key, _ in chunks],
            pages=[self.pages[key] for key, _ in chunks],
            page_tokens=self.page_tokens,
        )
        ids = torch.cat([tokens for _, tokens in chunks])
        logits = self.model.forward(ids, batch, self.cache, logit_rows=torch.arange(len(ids)))
        return list(logits.split([len(tokens) for _, tokens in chunks]))
