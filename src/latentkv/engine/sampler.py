"""Logits to tokens, as SamplingParams says. Knows nothing of the cache, the model or text.

Each request draws from its own generator, one number per token, and every row is filtered on its own, so a token does
not depend on what else is in the batch.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from latentkv.engine.output import TokenLogprob
from latentkv.engine.sampling_params import SamplingParams

# Tokens that are looked at first for top-p: more are sorted only where these do not reach it.
FIRST_CANDIDATES = 512


class Constraint(Protocol):
    """Which tokens may follow in one request, a grammar for instance. Keeps its own place in the output."""

    def allowed(self) -> Tensor:
        """[vocab] bool: the tokens that may come next; at least one may."""
        ...

    def advance(self, token_id: int) -> None:
        """Take note of the token that was chosen."""
        ...


@dataclass(frozen=True, slots=True)
class Row:
    """What sampling one row of logits needs to know.

    prompt_ids, output_ids: the tokens so far
    banned_ids:             tokens that may not come yet (ends of sequence before `min_tokens`)
    generator:              the request's own, on the CPU; not used when greedy
    constraint:             the request's own; told every token that is chosen
    """

    params: SamplingParams
    prompt_ids: Sequence[int]
    output_ids: Sequence[int]
    banned_ids: Sequence[int]
    generator: torch.Generator
    constraint: Constraint | None = None


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
    chosen, largest = _largest(logits)
    # Where NaN counts as the largest, as it does here, the largest logit tells of all.
    if not all(math.isfinite(value) for value in largest):
        raise FloatingPointError("the model's logits contain NaN or infinity")
    adjusted = _adjust(logits, rows)
    if adjusted is not logits:
        chosen, _ = _largest(adjusted)
    drawn = [index for index, row in enumerate(rows) if not row.params.greedy]
    if drawn:
        chances = probabilities(adjusted[drawn], [rows[i].params for i in drawn])
        for index, token in zip(drawn, _draw(chances, [rows[i] for i in drawn]).tolist(), strict=True):
            chosen[index] = token
    for token, row in zip(chosen, rows, strict=True):
        if row.constraint is not None:
            row.constraint.advance(token)
    return [
        Sampled(token, _logprob(logits[index], token, row.params.logprobs))
        for index, (token, row) in enumerate(zip(chosen, rows, strict=True))
    ]


def probabilities(logits: Tensor, params: Sequence[SamplingParams]) -> Tensor:
    """Probabilities [M, vocab] float32 after temperature, top-k, top-p and min-p, from penalised logits [M, vocab].

    Temperatures must be above 0. Equal logits at the edge of top-k and top-p: the lower id stays.
    """
    column = _columns(logits, params)
    # Subtracting the maximum first, and a floor that float32 can hold, keep tiny temperatures finite.
    temperature = column("temperature").clamp(min=torch.finfo(logits.dtype).tiny)
    scaled = (logits - logits.amax(dim=-1, keepdim=True)) / temperature
    for row, one in zip(scaled, params, strict=True):
        if one.top_k > 0 or one.top_p < 1:
            row.copy_(_leading_only(row, one.top_k, one.top_p))
    chances = scaled.softmax(dim=-1)
    if all(one.min_p == 0 for one in params):
        return chances
    chances = chances.masked_fill(chances < column("min_p") * chances.amax(dim=-1, keepdim=True), 0.0)
    return chances / chances.sum(dim=-1, keepdim=True)


def _largest(logits: Tensor) -> tuple[list[int], list[float]]:
    """The largest of each row [M, vocab] and its id: the first of equal ones, and NaN before all others."""
    if logits.device.type != "cpu":
        values, ids = logits.max(dim=-1)
        return ids.tolist(), values.tolist()
    # torch looks at one number after the other, a fiftieth of a decode step of a small model.
    numbers = logits.numpy()
    largest = numbers.argmax(axis=-1).tolist()
    return largest, [numbers.item(row, token) for row, token in enumerate(largest)]


def _leading_only(scaled: Tensor, top_k: int, top_p: float) -> Tensor:
    """One row of logits [vocab] with -inf at all but its leading tokens. Sorts no more than it has to."""
    vocab = scaled.numel()
    count = min(top_k or FIRST_CANDIDATES, vocab)
    while True:
        ids = _leading_ids(scaled, count)
        leading = scaled[ids]
        mass = leading.softmax(0) if top_k else (leading - scaled.logsumexp(0)).exp()
        # A token stays while those before it have not reached top_p: the first always does.
        stays = (mass.cumsum(0) - mass < top_p) if top_p < 1 else torch.ones_like(mass, dtype=torch.bool)
        stays[0] = True
        if top_k or count == vocab or not stays[-1]:
            return torch.full_like(scaled, -torch.inf).index_copy_(0, ids[stays], leading[stays])
        count = min(8 * count, vocab)


def _leading_ids(scaled: Tensor, count: int) -> Tensor:
    """The ids of the `count` largest of [vocab], falling; equal ones by rising id, which topk does not promise."""
    candidates = (scaled >= scaled.topk(count, sorted=False).values.amin()).nonzero().squeeze(1)
    return candidates[scaled[candidates].sort(descending=True, stable=True).indices[:count]]


def _columns(like: Tensor, params: Sequence[SamplingParams]) -> Callable[[str], Tensor]:
    def column(name: str) -> Tensor:
        return torch.tensor([[float(getattr(p, name))] for p in params], dtype=like.dtype, device=like.device)

    return column


def _adjust(logits: Tensor, rows: Sequence[Row]) -> Tensor:
    """Logits after penalties, biases, constraints and bans: a new tensor, or the argument where no row has any."""
    changed = [index for index, row in enumerate(rows) if _changes(row)]
    if not changed:
        return logits
    adjusted = logits.clone()
    for index in changed:
        row = rows[index]
        _penalise(adjusted[index], row)
        for token_id, bias in row.params.logit_bias.items():
            adjusted[index, token_id] += bias
        if row.constraint is not None:
            adjusted[index].masked_fill_(~row.constraint.allowed(), -torch.inf)
        adjusted[index, list(row.banned_ids)] = -torch.inf
    return adjusted


def _changes(row: Row) -> bool:
    return bool(row.banned_ids or row.params.logit_bias or row.constraint is not None or _penalised(row.params))


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
