"""Which tiers an engine has and how large they may be."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from latentkv.errors import OptionError, sentence

DEFAULT_DISK_BYTES = 8 * 2**30


@dataclass(frozen=True, slots=True, kw_only=True)
class TierOptions:
    """Where pages may go that leave the cache; by default nowhere, they are then computed again.

    host_cache_bytes: memory for pages that leave the cache; 0 = none
    swap_dir:         folder for pages that host memory has no room for; nothing in it outlives the process
    swap_bytes:       most that `swap_dir` may hold; the longest unused pages give way
    cache_dir:        folder for all full pages as they are computed; the next process finds them there
    cache_dir_bytes:  most that `cache_dir` may hold for one model

    Raises OptionError for a value outside its range, or one folder for both.
    """

    host_cache_bytes: int = 0
    swap_dir: str | Path | None = None
    swap_bytes: int = DEFAULT_DISK_BYTES
    cache_dir: str | Path | None = None
    cache_dir_bytes: int = DEFAULT_DISK_BYTES

    def __post_init__(self) -> None:
        for name in ("host_cache_bytes", "swap_bytes", "cache_dir_bytes"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                raise OptionError(sentence(name, expected="a number of bytes, 0 or more", got=repr(value)))
        for name in ("swap_dir", "cache_dir"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, str | Path) or not str(value)):
                raise OptionError(sentence(name, expected="a folder", got=repr(value)))
        if self.swap_dir and self.cache_dir and Path(self.swap_dir).absolute() == Path(self.cache_dir).absolute():
            got = f"{self.swap_dir} for both"
            raise OptionError(sentence("swap_dir and cache_dir", expected="two folders", got=got))

    @property
    def any(self) -> bool:
        """Whether there is a tier at all."""
        return bool(self.host_cache_bytes or self.swap_dir or self.cache_dir)

    def check_prefix_cache(self, *, prefix_cache: bool) -> None:
        """Raise OptionError when tiers are asked for without the prefix index, by which their pages are found."""
        if self.any and not prefix_cache:
            raise OptionError(
                sentence(
                    "host_cache_bytes, swap_dir and cache_dir",
                    expected="none of them without the prefix cache, by which pages are found again",
                    got="prefix_cache=False",
                )
            )
