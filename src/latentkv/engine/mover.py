"""Moves whole pages: within the cache, out of it into the tiers below, and back. Decides nothing."""

from __future__ import annotations

from latentkv.cache.latent import LatentCache
from latentkv.cache.prefix import Link
from latentkv.cache.tiers.options import TierOptions
from latentkv.cache.tiers.record import Rows
from latentkv.cache.tiers.tiers import NOTHING_BELOW, Fetched, Tiers, TierStats, open_tiers


class PageMover:
    """Bytes between one cache and the tiers below it, if there are any. Everything is done when a call returns."""

    def __init__(self, cache: LatentCache, tiers: Tiers | None) -> None:
        self._cache = cache
        self.tiers = tiers

    @staticmethod
    def open(cache: LatentCache, options: TierOptions, *, identity: bytes, model: str) -> PageMover:
        """With the tiers that `options` ask for. Raises OptionError for a folder that cannot be used.

        identity: whose rows they are; model: the same for people
        """
        layout = cache.layout
        about: dict[str, str | int] = {
            "model": model,
            "format": layout.row.format,
            "layers": layout.num_hidden_layers,
            "page tokens": layout.page_tokens,
            "bytes per token": layout.bytes_per_token,
        }
        sizes = {"page_tokens": layout.page_tokens, "page_bytes": layout.page_bytes}
        return PageMover(cache, open_tiers(options, identity=identity, about=about, **sizes))

    def copy(self, source: int, target: int) -> None:
        """Copy page `source` to page `target`."""
        self._cache.copy_pages([source], [target])

    def save(self, link: Link, page: int) -> None:
        """`page` is about to be overwritten: offer it to the tiers."""
        if self.tiers is not None:
            self.tiers.save(link, lambda: self._cache.page_rows(page))

    def keep(self, link: Link, page: int) -> None:
        """`page` is complete: offer it to the persistent tier."""
        if self.tiers is not None:
            self.tiers.keep(link, lambda: self._cache.page_rows(page))

    def fetch(self, link: Link) -> Fetched | None:
        """The rows of a page from a lower tier, if that has them and is worth asking."""
        return self.tiers.fetch(link) if self.tiers is not None else None

    def place(self, rows: Rows, page: int) -> None:
        """Put rows that were fetched into `page`."""
        self._cache.place_rows(page, rows)

    def computed(self, tokens: int, seconds: float) -> None:
        """Note how long tokens of prompts took to compute: what loading is weighed against."""
        if self.tiers is not None:
            self.tiers.costs.computed(tokens, seconds)

    def stats(self) -> TierStats:
        """What the tiers hold and have moved; all zero without."""
        return self.tiers.stats() if self.tiers is not None else NOTHING_BELOW

    def recover(self) -> None:
        """Put the tiers' books in order after an interruption at an unknown point."""
        if self.tiers is not None:
            self.tiers.recover()

    def check(self) -> None:
        """Raise PageAccountingError unless the tiers' books agree."""
        if self.tiers is not None:
            self.tiers.check()
