"""Needle in a haystack: a number told somewhere in a long text has to be repeated at its end.

The haystack is the evaluated text itself. The question repeats the words that stood before the number, which is the
easiest form of the task, so that small models can do it; the answer is right when each of its tokens is the likeliest.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from latentkv.evaluate.runs import Runs

PLACES = ("Oslo", "Lima", "Cairo", "Quebec", "Osaka", "Perth", "Porto", "Delhi", "Turin", "Dakar", "Sofia", "Leeds")
CHUNK_TOKENS = 512


@dataclass(frozen=True)
class Needle:
    """token_ids: [T] int64, haystack, needle, haystack, question and answer; answer_tokens: the last of them."""

    token_ids: Tensor
    answer_tokens: int


def make_needles(
    encode: Callable[[str], list[int]], haystack: Sequence[int], *, count: int, tokens: int
) -> list[Needle]:
    """`count` prompts of `tokens` tokens (fewer where the haystack is short) with needles at evenly spread depths."""
    draw = random.Random(0)
    needles: list[Needle] = []
    for index in range(count):
        place, number = PLACES[index % len(PLACES)], str(draw.randrange(10_000, 100_000))
        question, answer = encode(f"\nThe secret number of {place} is"), encode(f" {number}")
        needle = [*question, *answer, *encode(".\n")]
        room = max(0, min(tokens - len(needle) - len(question) - len(answer), len(haystack)))
        first = draw.randrange(len(haystack) - room + 1)
        around = list(haystack[first : first + room])
        depth = room * (2 * index + 1) // (2 * count)
        prompt = [*around[:depth], *needle, *around[depth:], *question, *answer]
        needles.append(Needle(torch.tensor(prompt), len(answer)))
    return needles


def find(runs: Runs, needle: Needle, *, advance: Callable[[int], None] | None = None) -> dict[str, bool]:
    """Whether the number is repeated without error, in every format."""
    found: dict[str, bool] = {}
    ids = needle.token_ids
    first_answer = len(ids) - needle.answer_tokens
    for name in runs.names:
        likeliest: list[Tensor] = []
        for start in range(0, len(ids) - 1, CHUNK_TOKENS):
            chunk = ids[start : min(start + CHUNK_TOKENS, len(ids) - 1)]
            rows = torch.arange(min(max(0, first_answer - 1 - start), len(chunk)), len(chunk))
            likeliest.append(runs.log_probs(name, chunk, start=start, rows=rows).argmax(dim=-1))
            if advance is not None:
                advance(len(chunk))
        found[name] = torch.equal(torch.cat(likeliest), ids[first_answer:])
    return found
