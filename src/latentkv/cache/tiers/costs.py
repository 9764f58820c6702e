"""Whether bringing a page back is quicker than computing it again. Arithmetic on measured rates, no clock of its own.

All rates are moving averages. Before anything was computed loading is preferred; before anything was loaded a tier is
taken to be as fast as ASSUMED says.
"""

from __future__ import annotations

# Bytes per second, on the low side of copying memory and of reading an ordinary solid-state disk.
ASSUMED = {"host": 4e9, "swap": 5e8, "cache": 5e8}
_WEIGHT = 0.2


class Costs:
    """What a second brings: tokens computed, or bytes loaded from each tier."""

    def __init__(self) -> None:
        self.tokens_per_second: float | None = None
        self.bytes_per_second = dict(ASSUMED)

    def computed(self, tokens: int, seconds: float) -> None:
        """Note a step that computed this many tokens of prompts."""
        if tokens and seconds > 0:
            rate = tokens / seconds
            self.tokens_per_second = _moved(self.tokens_per_second or rate, rate)

    def loaded(self, tier: str, size_bytes: int, seconds: float) -> None:
        """Note a page that was loaded."""
        if seconds > 0:
            self.bytes_per_second[tier] = _moved(self.bytes_per_second[tier], size_bytes / seconds)

    def prefers_loading(self, tier: str, size_bytes: int, tokens: int) -> bool:
        """Whether loading these bytes takes less time than computing these tokens.

        Each refusal moves the tier's rate towards the assumed one, so that one slow moment does not close a tier for
        good.
        """
        if self.tokens_per_second is None:
            return True
        if size_bytes / self.bytes_per_second[tier] <= tokens / self.tokens_per_second:
            return True
        self.bytes_per_second[tier] = _moved(self.bytes_per_second[tier], ASSUMED[tier])
        return False


def _moved(average: float, value: float) -> float:
    return average + _WEIGHT * (value - average)
