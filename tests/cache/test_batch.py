from __future__ import annotations

import pytest

from latentkv.cache.batch import UNUSED_PAGE, Batch
from latentkv.errors import ShapeError


def test_a_mix_of_chunk_decode_and_nothing() -> None:
    batch = Batch.build(query_lens=[3, 1, 0], context_lens=[5, 4, 2], pages=[[7, 2, 5], [0, 3], [1]], page_tokens=2)
    assert batch.query_start.tolist() == [0, 3, 4, 4]
    assert batch.positions.tolist() == [2, 3, 4, 3]
    assert batch.slots.tolist() == [4, 5, 10, 7]
    assert batch.page_table.tolist() == [[7, 2, 5], [0, 3, UNUSED_PAGE], [1, UNUSED_PAGE, UNUSED_PAGE]]
    assert batch.lengths == ((3, 5), (1, 4), (0, 2))
    assert (batch.num_sequences, batch.num_tokens) == (3, 4)


def test_an_empty_batch_is_legal() -> None:
    batch = Batch.build(query_lens=[], context_lens=[], pages=[], page_tokens=64)
    assert (batch.num_sequences, batch.num_tokens, batch.lengths) == (0, 0, ())
    assert batch.page_table.shape == (0, 0)


def test_sequences_without_any_token_or_page_are_legal() -> None:
    batch = Batch.build(query_lens=[0, 0], context_lens=[0, 0], pages=[[], []], page_tokens=64)
    assert batch.page_table.shape == (2, 0)
    assert batch.lengths == ((0, 0), (0, 0))


@pytest.mark.parametrize("page_tokens", [1, 4, 256])
def test_slots_follow_the_page_table_across_pages(page_tokens: int) -> None:
    pages = [5, 3, 8, 1]
    context = min(4 * page_tokens, 9) if page_tokens > 1 else 4
    batch = Batch.build(query_lens=[context], context_lens=[context], pages=[pages], page_tokens=page_tokens)
    found = [(slot // page_tokens, slot % page_tokens) for slot in batch.slots.tolist()]
    assert found == [(pages[p // page_tokens], p % page_tokens) for p in range(context)]


@pytest.mark.parametrize(
    ("query_lens", "context_lens", "pages", "complaint"),
    [
        ([1, 1], [1], [[0]], "same number of sequences"),
        ([3], [2], [[0, 1]], r"context_lens\[0\]"),
        ([-1], [2], [[0, 1]], r"context_lens\[0\]"),
        ([1, 1], [2, 5], [[0], [1, 2]], r"pages\[1\]: expected room for 5 tokens, got room for 4"),
    ],
)
def test_lists_that_disagree_are_refused(
    query_lens: list[int], context_lens: list[int], pages: list[list[int]], complaint: str
) -> None:
    with pytest.raises(ShapeError, match=complaint):
        Batch.build(query_lens=query_lens, context_lens=context_lens, pages=pages, page_tokens=2)
