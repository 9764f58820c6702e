"""How well a model predicts a text: the number that says what rounding its weights costs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch.nn import functional

from latentkv.cache.batch import Batch
from latentkv.cache.latent import LatentCache
from latentkv.cache.layout import layout_for
from latentkv.errors import OptionError, sentence
from latentkv.models.model import Model

WINDOW_TOKENS = 1024
# Logits of so many tokens are held at a time: with 150,000 entries each, 150 MB.
_CHUNK_TOKENS = 256


def perplexity(
    model: Model,
    token_ids: Sequence[int],
    *,
    window_tokens: int = WINDOW_TOKENS,
    progress: Callable[[int, int], None] | None = None,
) -> float:
    """exp of the mean negative log-likelihood, in windows that do not overlap.

    Every window is predicted from its second token on, without what came before it; a shorter rest is a window, too.
    progress: called with (tokens done, tokens in all)

    Raises OptionError for a text of less than two tokens.
    """
    if len(token_ids) < 2:
        raise OptionError(sentence("text", expected="at least two tokens", got=len(token_ids)))
    window = min(window_tokens, model.max_position_embeddings)
    total, scored = 0.0, 0
    for start in range(0, len(token_ids) - 1, window):
        part = torch.tensor(token_ids[start : start + window], dtype=torch.int64)
        total += _negative_log_likelihood(model, part)
        scored += len(part) - 1
        if progress is not None:
            progress(min(start + window, len(token_ids)), len(token_ids))
    return math.exp(total / scored)


@torch.inference_mode()
def _negative_log_likelihood(model: Model, tokens: torch.Tensor) -> float:
    """Sum over all tokens [T] but the first, in nats."""
    layout = layout_for(model.geometry, "f32")
    cache = LatentCache(layout, layout.pages_for(len(tokens)), device=model.device)
    pages, total = list(range(cache.num_pages)), 0.0
    for start in range(0, len(tokens), _CHUNK_TOKENS):
        chunk = tokens[start : start + _CHUNK_TOKENS]
        batch = Batch.build(
            query_lens=[len(chunk)],
            context_lens=[start + len(chunk)],
            pages=[pages],
            page_tokens=layout.page_tokens,
        )
        wanted = torch.arange(min(len(chunk), len(tokens) - 1 - start))
        logits = model.forward(chunk, batch, cache, logit_rows=wanted)
        following = tokens[start + 1 : start + 1 + len(wanted)]
        total += float(functional.cross_entropy(logits, following, reduction="sum"))
    return total
