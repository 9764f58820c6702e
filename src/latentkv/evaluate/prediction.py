"""How well the next token is predicted, in each cache format and against the reference format.

The text is read in windows that do not overlap, teacher-forced, in chunks; each window starts with an empty cache.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from latentkv.evaluate.runs import Runs

# Logits of so many tokens are held at a time, twice: with 150,000 entries each, 300 MB.
CHUNK_TOKENS = 256


@dataclass(frozen=True, slots=True)
class Prediction:
    """Sums over predicted tokens, in nats; they add up.

    tokens:     how many were predicted
    surprise:   sum of the negative log-likelihoods
    divergence: sum of KL(reference || this format) of the next-token distributions
    squares:    sum of the squares of those
    agreements: how often the likeliest token is the reference's
    """

    tokens: int = 0
    surprise: float = 0.0
    divergence: float = 0.0
    squares: float = 0.0
    agreements: int = 0

    def __add__(self, other: Prediction) -> Prediction:
        return Prediction(
            self.tokens + other.tokens,
            self.surprise + other.surprise,
            self.divergence + other.divergence,
            self.squares + other.squares,
            self.agreements + other.agreements,
        )

    @property
    def perplexity(self) -> float:
        """exp of the mean negative log-likelihood; NaN without tokens."""
        return math.exp(self.surprise / self.tokens) if self.tokens else math.nan

    @property
    def mean_divergence(self) -> float:
        """Mean KL divergence in nats; NaN without tokens."""
        return self.divergence / self.tokens if self.tokens else math.nan

    @property
    def divergence_error(self) -> float:
        """Standard error of that mean, tokens taken as independent; NaN for fewer than two."""
        if self.tokens < 2:
            return math.nan
        variance = self.squares / self.tokens - self.mean_divergence**2
        return math.sqrt(max(0.0, variance) / (self.tokens - 1))

    @property
    def agreement(self) -> float:
        """Share of tokens whose likeliest successor is the reference's; NaN without tokens."""
        return self.agreements / self.tokens if self.tokens else math.nan


def windows(token_ids: Sequence[int], *, tokens: int) -> list[Tensor]:
    """The text cut into pieces [T] int64 of `tokens`, the last perhaps shorter; a rest of one token is left out."""
    pieces = [torch.tensor(token_ids[start : start + tokens]) for start in range(0, len(token_ids), tokens)]
    return [piece for piece in pieces if len(piece) > 1]


def predict(
    runs: Runs, window: Tensor, *, reference: str, advance: Callable[[int], None] | None = None
) -> dict[str, Prediction]:
    """Predict tokens 1 ... T-1 of a window [T] int64 in every format, `reference` among them.

    advance: called with the number of tokens computed since the last call, counted once per format
    """
    order = sorted(runs.names, key=lambda name: name != reference)
    sums = {name: Prediction() for name in runs.names}
    for start in range(0, len(window), CHUNK_TOKENS):
        chunk, following = window[start : start + CHUNK_TOKENS], window[start + 1 : start + 1 + CHUNK_TOKENS]
        expected: Tensor | None = None
        for name in order:
            log_probs = runs.log_probs(name, chunk, start=start, rows=torch.arange(len(following)))
            expected = log_probs if expected is None else expected
            sums[name] += _compare(log_probs, expected, following)
            if advance is not None:
                advance(len(chunk))
    return sums


def _compare(log_probs: Tensor, expected: Tensor, following: Tensor) -> Prediction:
    divergence = (expected.exp() * (expected - log_probs)).sum(dim=-1).double()
    return Prediction(
        tokens=len(following),
        surprise=-float(log_probs.gather(1, following[:, None]).double().sum()),
        divergence=float(divergence.sum()),
        squares=float(divergence.square().sum()),
        agreements=int((log_probs.argmax(dim=-1) == expected.argmax(dim=-1)).sum()),
    )
