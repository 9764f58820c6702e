"""Logits to tokens, as SamplingParams says. Knows nothing of the cache, the model or text.

Each request draws from its own generator, one number per token, and every row is filtered on its own, so a token does
not depend on what else is in the batch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from latentkv.engine.output import TokenLogprob
from latentkv.engine.sampling_params import SamplingParams


@dataclass(frozen=True, slots=True)
class Row:
    """What sampling one row of logits needs to know.

    prompt_ids, output_ids: the tokens so far
    banned_ids:             tokens that may not come yet (ends of sequence before `min_tokens`)
    generator:              the request's own, on the CPU; not used when greedy
    """

    params: SamplingParams
    prompt_ids: Sequence[int]
    output_ids: Sequence[int]
    banned_ids: Sequence[int]
    generator: torch.Generator


@dataclass(frozen=True, slots=True)
class Sampled:
    """A chosen token, and its log-probabilities when they were asked for."""

    token_id: int
    logprob: TokenLogprob | None


def make_generator(seed: int | None) -> torch.Generator:
    """A request's generator: repeatable from a seed, different each time without one."""
    generator = torch.Generator()
    if seed is None:
        generator.seed()
    else:
        generator.manual_seed(seed)
    return generator


def sample(logits: Tensor, rows: Sequence[Row]) -> list[Sampled]:
    """One token for each row of logits [M, vocab] float32 (read only).

    Raises FloatingPointError when a row contains NaN or infinity: whatever came out would be noise.
    """
    if not bool(logits.amax(dim=-1).isfinite().all()):
        raise FloatingPointError("the model's logits contain NaN or infinity")
    adjusted = _adjust(logits, rows)
    tokens = adjusted.argmax(dim=-1)
    drawn = [index for index, row in enumerate(rows) if not row.params.greedy]
    if drawn:
        tokens[drawn] = _draw(probabilities(adjusted[drawn], [rows[i].params for i in drawn]), [rows[i] for i in drawn])
    return [
        Sampled(token, _logprob(logits[index], token, row.params.logprobs))
        for index, (token, row) in enumerate(zip(tokens.tolist(), rows, strict=True))
    ]


def probabilities(logits: Tensor, params: Sequence[SamplingParams]) -> Tensor:
    """Probabilities [M, vocab] float32 after temperature, top-k, top-p and min-p, from penalised logits [M, vocab].

    Temperatures must be above 0. Equal logits at the edge of top-k and top-p: the lower id stays.
    """
    column = _columns(logits, params)
    # Subtracting the maximum first, and a floor that float32 can hold, keep tiny temperatures finite.
    temperature = column("temperature").clamp(min=torch.finfo(logits.dtype).tiny)
    scaled = (logits - logits.amax(dim=-1, keepdim=True)) / temperature
    if any(p.top_k > 0 or p.top_p < 1 for p in params):
        ordered, order = scaled.sort(dim=-1, descending=True, stable=True)
        top_k = column("top_k")
        rank = torch.arange(logits.shape[-1], device=logits.device)
        ordered = ordered.masked_fill((top_k > 0) & (rank >= top_k), -torch.inf)
        mass = ordered.softmax(dim=-1)
        top_p = column("top_p")
        # A token stays while those before it have not reached top_p: the first always does.
        reached = mass.cumsum(dim=-1) - mass >= top_p
        ordered = ordered.masked_fill(reached & (top_p < 1) & (rank > 0), -torch.inf)
        scaled = torch.empty_like(scaled).scatter_(-1, order, ordered)
    chances = scaled.softmax(dim=-1)
    chances = chances.masked_fill(chances < column("min_p") * chances.amax(dim=-1, keepdim=True), 0.0)
    return chances / chances.sum(dim=-1, keepdim=True)


def _columns(like: Tensor, params: Sequence[SamplingParams]) -> Callable[[str], Tensor]:
    def column(name: str) -> Tensor:
        return torch.tensor([[float(getattr(p, name))] for p in params], dtype=like.dtype, device=like.device)

    return column


def _adjust(logits: Tensor, rows: Sequence[Row]) -> Tensor:
    """Logits after bans and penalties: a new tensor when any row has some, else the argument itself."""
    changed = [index for index, row in enumerate(rows) if row.banned_ids or _penalised(row.params)]
    if not changed:
        return logits
    adjusted = logits.clone()
    for index in changed:
        _penalise(adjusted[index], rows[index])
        adjusted[index, list(rows[index].banned_ids)] = -torch.inf
    return adjusted


def _penalised(params: SamplingParams) -> bool:
    return params.repetition_penalty != 1 or params.presence_penalty != 0 or params.frequency_penalty != 0


def _penalise(logits: Tensor, row: Row) -> None:
    """Apply the penalties to one row of logits [vocab], in place."""
    if not _penalised(row.params):
        return
    written = Counter(row.output_ids)
    seen = torch.tensor(list({*row.prompt_ids, *written}), dtype=torch.int64, device=logits.device)
    penalty = row.params.repetition_penalty
    logits[seen] = torch.where(logits[seen] > 0, logits[seen] / penalty, logits[seen] * penalty)
    ids = torch.tensor(list(written.keys()), dtype=torch.int64, device=logits.device)
    times = torch.tensor(list(written.values()), dtype=logits.dtype, device=logits.device)
    logits[ids] -= row.params.presence_penalty + row.params.frequency_penalty * times


def _draw(chances: Tensor, rows: Sequence[Row]) -> Tensor:
    """One token per row of probabilities [M, vocab]: where its running sum passes the request's random number."""
    uniform = torch.cat([torch.rand(1, 1, dtype=torch.float64, generator=row.generator) for row in rows])
    running = chances.double().cumsum(dim=-1)
    total = running[:, -1:]
    # Rounding may not carry the product up to the total, beyond the last token.
    point = torch.minimum(uniform.to(chances.device) * total, torch.nextafter(total, torch.zeros_like(total)))
    return torch.searchsorted(running, point, right=True).squeeze(-1)


def _logprob(logits: Tensor, token: int, alternatives: int | None) -> TokenLogprob | None:
    if alternatives is None:
        return None
    logprobs = logits.float().log_softmax(dim=-1)
    values, ids = logprobs.topk(min(alternatives, logprobs.numel()))
    return TokenLogprob(token, float(logprobs[token]), tuple(zip(ids.tolist(), values.tolist(), strict=True)))
