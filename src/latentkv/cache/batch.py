"""One step's work, ragged: which tokens of which sequences are computed, and where their context lies.

Decode, chunked prefill, prefix hits and multi-token verification are the same call with other numbers: sequence b
brings `query_len[b]` new tokens, which are the last of the `context_len[b]` tokens it can see. Lengths may be zero.
Built from plain Python lists by the engine; knows no model.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from latentkv.errors import ShapeError, sentence

# A page-table slot that no token uses holds this, so that reading it fails loudly instead of reading page 0.
UNUSED_PAGE = 2**31 - 1

_TYPE_CODES = {torch.int64: "q", torch.int32: "i"}


@dataclass(frozen=True)
class Batch:
    """A ragged batch over B sequences with T new tokens in all.

    query_start: [B+1] int64, row of each sequence's first new token, query_start[B] == T
    context_len: [B] int64, tokens visible to the sequence's last new token, the new ones included
    page_table:  [B, max_pages] int32, pages of each sequence in order; slots past its context are never read
    positions:   [T] int64, position of each new token in its sequence
    slots:       [T] int64, row of the cache each new token is written to: page * page_tokens + offset
    page_tokens: rows in a page
    """

    query_start: Tensor
    context_len: Tensor
    page_table: Tensor
    positions: Tensor
    slots: Tensor
    page_tokens: int

    @property
    def num_sequences(self) -> int:
        """B."""
        return self.context_len.numel()

    @property
    def num_tokens(self) -> int:
        """T, new tokens of all sequences."""
        return self.positions.numel()

    @cached_property
    def lengths(self) -> tuple[tuple[int, int], ...]:
        """(query_len, context_len) of every sequence as Python numbers; what a plan is made for."""
        start = self.query_start.tolist()
        return tuple(
            (stop - begin, context)
            for begin, stop, context in zip(start, start[1:], self.context_len.tolist(), strict=False)
        )

    def last_tokens(self, rows: Tensor) -> Batch | None:
        """The batch of these new tokens alone, with everything before them in the cache; rows: [M] int64 of the T.

        None unless they are, in order, the last ones of each sequence: others see less than a sequence's context.
        """
        wanted = rows.tolist()
        start = self.query_start.tolist()
        counts = [bisect_left(wanted, stop) - bisect_left(wanted, begin) for begin, stop in pairwise(start)]
        if wanted != [row for stop, count in zip(start[1:], counts, strict=True) for row in range(stop - count, stop)]:
            return None
        return replace(
            self,
            query_start=integers([0, *accumulate(counts)]),
            positions=self.positions[rows],
            slots=self.slots[rows],
        )

    @staticmethod
    def build(
        *,
        query_lens: Sequence[int],
        context_lens: Sequence[int],
        pages: Sequence[Sequence[int]],
        page_tokens: int,
    ) -> Batch:
        """A batch from Python lists; positions and slots follow from them.

        Raises ShapeError when the lists disagree, a sequence sees fewer tokens than it brings, or has too few pages.
        """
        if not len(query_lens) == len(context_lens) == len(pages):
            raise ShapeError(
                sentence(
                    "query_lens, context_lens and pages",
                    expected="the same number of sequences",
                    got=f"{len(query_lens)}, {len(context_lens)} and {len(pages)}",
                )
            )
        query_start = [0]
        positions: list[int] = []
        slots: list[int] = []
        for index, (query, context, table) in enumerate(zip(query_lens, context_lens, pages, strict=True)):
            _check_sequence(index, query, context, len(table) * page_tokens)
            new = range(context - query, context)
            positions.extend(new)
            slots.extend(table[p // page_tokens] * page_tokens + p % page_tokens for p in new)
            query_start.append(query_start[-1] + query)
        width = max((len(table) for table in pages), default=0)
        padded = [page for table in pages for page in (*table, *[UNUSED_PAGE] * (width - len(table)))]
        return Batch(
            query_start=integers(query_start),
            context_len=integers(context_lens),
            page_table=integers(padded, torch.int32).view(len(pages), width),
            positions=integers(positions),
            slots=integers(slots),
            page_tokens=page_tokens,
        )


def integers(values: Iterable[int], dtype: torch.dtype = torch.int64) -> Tensor:
    """A tensor [n] of these numbers, int64 or int32, in a fraction of `torch.tensor`'s time."""
    numbers = array(_TYPE_CODES[dtype], values)
    return torch.frombuffer(numbers, dtype=dtype) if numbers else torch.empty(0, dtype=dtype)


def _check_sequence(index: int, query: int, context: int, room: int) -> None:
    if not 0 <= query <= context:
        raise ShapeError(
            sentence(
                f"context_lens[{index}]", expected=f"at least its {query} new tokens (and those >= 0)", got=context
            )
        )
    if context > room:
        raise ShapeError(sentence(f"pages[{index}]", expected=f"room for {context} tokens", got=f"room for {room}"))
