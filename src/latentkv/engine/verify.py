"""From a step's logits to its tokens: one for each sequence, and more where guesses came true. Knows no model.

A guess is right when it is the very token that sampling yields there, greedy or drawn: each token is drawn from the
same logits, with the same random number, penalties and constraint as it would have been one step later. So guessing
changes how many tokens a step yields and never which, up to the rounding of logits computed in another company.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate

from torch import Tensor

from latentkv.engine.sampler import Row, Sampled, sample
from latentkv.engine.state import Chunk, Step


def sample_step(logits: Tensor, step: Step, row: Callable[[Chunk, Sequence[int]], Row]) -> list[list[Sampled]]:
    """Tokens for each of `step.sampling`: the first, and one more for each guess that was right, up to the end.

    logits: [M, vocab] float32, `step.logit_rows` in number
    row:    what sampling needs to know of a chunk's sequence after the tokens that this step gave it so far
    """
    chunks = step.sampling
    if len(logits) == len(chunks):
        return [[one] for one in sample(logits, [row(chunk, ()) for chunk in chunks])]
    starts = [0, *accumulate(1 + len(chunk.drafts) for chunk in chunks)]
    taken: list[list[Sampled]] = [[] for _ in chunks]
    going = list(range(len(chunks)))
    while going:
        places = [starts[index] + len(taken[index]) for index in going]
        rows = [row(chunks[index], _ids(taken[index])) for index in going]
        for index, one in zip(going, sample(logits[places], rows), strict=True):
            taken[index].append(one)
        going = [index for index in going if _goes_on(chunks[index], _ids(taken[index]))]
    return taken


def _goes_on(chunk: Chunk, tokens: Sequence[int]) -> bool:
    """Whether the last token was guessed, so that what follows it has been computed too, and is not the end."""
    guessed = len(tokens) <= len(chunk.drafts) and chunk.drafts[len(tokens) - 1] == tokens[-1]
    return guessed and chunk.sequence.reason_to_finish(tokens) is None


def _ids(sampled: Sequence[Sampled]) -> list[int]:
    return [one.token_id for one in sampled]
