"""From tokens to text that is safe to show: whole characters, and nothing of a stop string. Knows no tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


class TextStream(Protocol):
    """Turns tokens into text bit by bit."""

    def push(self, token_id: int) -> str:
        """The text that became certain with this token; never half a character."""
        ...

    def flush(self) -> str:
        """What was still held back."""
        ...


class Tokenizer(Protocol):
    """What the engine asks of a tokenizer."""

    @property
    def eos_token_ids(self) -> frozenset[int]:
        """Tokens that end a text."""
        ...

    def encode(self, text: str, *, special_tokens: bool = True) -> list[int]:
        """Token ids of `text`; with `special_tokens`, the ones a prompt begins with are added."""
        ...

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """The text of `ids`."""
        ...

    def render_chat(self, messages: Sequence[dict[str, str]], *, add_generation_prompt: bool = True) -> str:
        """Messages as the text of a prompt, special tokens included."""
        ...

    def stream(self, *, after: Sequence[int] = ()) -> TextStream:
        """A new stream for one output, which continues the text of the tokens `after`."""
        ...


class StopMatcher:
    """Lets text through up to the first stop string, whatever pieces the text comes in.

    Text that may be the beginning of a stop string is held back until that is decided. The stop string that ends
    first wins, and of those the longest.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.stopped = False

    def push(self, piece: str) -> str:
        """The text that may be shown now; sets `stopped` when a stop string is complete."""
        if self.stopped:
            return ""
        text = self._held + piece
        found = [(text.find(stop) + len(stop), text.find(stop)) for stop in self._stops if stop in text]
        if found:
            self.stopped = True
            self._held = ""
            return text[: min(found)[1]]
        keep = max((overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def flush(self) -> str:
        """What is still held back, now that no more text comes."""
        held, self._held = self._held, ""
        return held


def overlap(text: str, stop: str) -> int:
    """Length of the longest proper beginning of `stop` that `text` ends with."""
    return next((size for size in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:size])), 0)


@dataclass(slots=True)
class OutputText:
    """The text of one output: its token stream, then its stop strings.

    stream:             None when there is no tokenizer; all text is then empty
    unstoppable_tokens: the text of this many first tokens is not searched for stop strings
    """

    stream: TextStream | None
    stops: StopMatcher
    unstoppable_tokens: int = 0

    @property
    def stopped(self) -> bool:
        """Whether a stop string ended the text."""
        return self.stops.stopped

    def push(self, token_id: int) -> str:
        """The text that may be shown after this token."""
        if self.stream is None:
            return ""
        piece = self.stream.push(token_id)
        if self.unstoppable_tokens > 0:
            self.unstoppable_tokens -= 1
            return piece
        return self.stops.push(piece)

    def finish(self) -> str:
        """The rest of the text; empty after a stop string."""
        if self.stream is None:
            return ""
        return self.stops.push(self.stream.flush()) + self.stops.flush()
