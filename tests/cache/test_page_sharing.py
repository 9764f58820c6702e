"""Random use of pages, prefixes and rows together, against a model of the truth.

Every row of the cache holds a number made from all tokens up to it, so that a page that is shared, copied or evicted
wrongly shows as a wrong row.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from latentkv.cache.latent import LatentCache
from latentkv.cache.layout import CacheLayout, mla_row
from latentkv.cache.pages import PageAllocator
from latentkv.cache.prefix import Link, PrefixIndex
from latentkv.errors import OutOfPagesError

NUM_PAGES = 9
PAGE_TOKENS = 2


def row_value(token_ids: list[int]) -> float:
    value = 1
    for token_id in token_ids:
        value = (value * 31 + token_id + 1) % 1_000_003
    return float(value)


@dataclass(eq=False)
class Held:
    """A sequence as the test knows it: its tokens and the pages it believes they are in."""

    token_ids: list[int]
    pages: list[int]
    tail: Link | None = None


class PageSharing(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.index = PrefixIndex(page_tokens=PAGE_TOKENS, identity=b"test")
        self.pages = PageAllocator(NUM_PAGES, page_tokens=PAGE_TOKENS, on_evict=self.index.forget)
        row = mla_row("f32", kv_lora_rank=1, qk_rope_head_dim=0)
        self.cache = LatentCache(CacheLayout(row, num_hidden_layers=2, page_tokens=PAGE_TOKENS), NUM_PAGES)
        self.cache.storage.fill_(float("nan"))
        self.sequences: list[Held] = []

    def slot(self, held: Held, position: int) -> torch.Tensor:
        return torch.tensor([held.pages[position // PAGE_TOKENS] * PAGE_TOKENS + position % PAGE_TOKENS])

    def write(self, held: Held, position: int) -> None:
        value = torch.tensor([[row_value(held.token_ids[: position + 1])]])
        for layer in range(2):
            self.cache.layer(layer).write(self.slot(held, position), {"latent": value, "rope": torch.empty(1, 0)})

    def out_of_pages(self, needed: int) -> None:
        assert needed > NUM_PAGES - len({page for held in self.sequences for page in held.pages})

    @rule(token_ids=st.lists(st.integers(0, 1), min_size=1, max_size=9))
    def start(self, token_ids: list[int]) -> None:
        """Take what the index has, compute the rest."""
        found = self.index.match(token_ids)
        needed = self.pages.pages_for(len(token_ids)) - len(found.pages)
        self.pages.share(found.pages)
        held = Held(token_ids, list(found.pages), found.tail)
        self.sequences.append(held)
        try:
            held.pages += self.pages.allocate(needed)
        except OutOfPagesError:
            self.out_of_pages(needed)
            self.sequences.remove(held)
            self.pages.release(held.pages)
            return
        for position in range(len(found.pages) * PAGE_TOKENS, len(token_ids)):
            self.write(held, position)

    @precondition(lambda self: self.sequences)
    @rule(data=st.data(), token_id=st.integers(0, 1))
    def append(self, data: st.DataObject, token_id: int) -> None:
        """One more token: in a new page, or in the last one, copied if others rely on it."""
        held = data.draw(st.sampled_from(self.sequences))
        try:
            if len(held.token_ids) % PAGE_TOKENS == 0:
                held.pages += self.pages.allocate(1)
            else:
                copy = self.pages.make_writable(held.pages[-1])
                if copy is not None:
                    self.cache.copy_pages([copy.source], [copy.target])
                    held.pages[-1] = copy.target
        except OutOfPagesError:
            self.out_of_pages(1)
            return
        held.token_ids.append(token_id)
        self.write(held, len(held.token_ids) - 1)

    @precondition(lambda self: self.sequences)
    @rule(data=st.data())
    def fork(self, data: st.DataObject) -> None:
        held = data.draw(st.sampled_from(self.sequences))
        self.pages.share(held.pages)
        self.sequences.append(Held(list(held.token_ids), list(held.pages), held.tail))

    @precondition(lambda self: self.sequences)
    @rule(data=st.data(), continued=st.booleans())
    def index_pages(self, data: st.DataObject, continued: bool) -> None:
        held = data.draw(st.sampled_from(self.sequences))
        inserted = self.index.insert(held.token_ids, held.pages, after=held.tail if continued else None)
        self.pages.keep(inserted.pages)
        held.tail = inserted.tail

    @precondition(lambda self: self.sequences)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        held = data.draw(st.sampled_from(self.sequences))
        self.sequences.remove(held)
        self.pages.release(held.pages)

    @invariant()
    def books_agree(self) -> None:
        self.pages.check()
        holders = Counter(page for held in self.sequences for page in held.pages)
        assert [self.pages.references(page) for page in range(NUM_PAGES)] == [holders[p] for p in range(NUM_PAGES)]
        assert self.pages.held_pages == len(holders)
        assert self.pages.kept_pages == self.index.pages
        assert self.pages.cached_pages == len(self.index.pages - set(holders))

    @invariant()
    def rows_are_those_of_the_tokens(self) -> None:
        for held in self.sequences:
            slots = torch.cat([self.slot(held, position) for position in range(len(held.token_ids))])
            expected = [row_value(held.token_ids[: n + 1]) for n in range(len(held.token_ids))]
            for layer in range(2):
                assert self.cache.layer(layer).read(slots)["latent"][:, 0].tolist() == expected


PageSharing.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestPageSharing = PageSharing.TestCase
