"""What is known of one request after it was sent. Plain data; times are of one clock that only goes forward."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True)
class Record:
    """One request; all times in seconds.

    due:           when it was to be sent: what it waited in the client counts as the server's
    pieces:        when each piece of output arrived
    error:         what went wrong, as a kind that can be counted; None for a whole answer
    prompt_tokens, output_tokens: as the server counted them; None where it did not
    """

    number: int
    due: float
    done: float = 0.0
    pieces: list[float] = field(default_factory=list)
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    error: str | None = None

    @property
    def tokens(self) -> int:
        """Output tokens; one for each piece where the server did not count."""
        return self.output_tokens if self.output_tokens is not None else len(self.pieces)

    @property
    def ttft(self) -> float:
        """Time to the first piece."""
        return self.pieces[0] - self.due

    @property
    def e2e(self) -> float:
        """Time to the end."""
        return self.done - self.due

    @property
    def gaps(self) -> list[float]:
        """Times between two pieces."""
        return [later - earlier for earlier, later in zip(self.pieces, self.pieces[1:], strict=False)]

    @property
    def per_token(self) -> float | None:
        """Mean time of a token after the first; None when there is only one."""
        return (self.pieces[-1] - self.pieces[0]) / (self.tokens - 1) if self.tokens > 1 else None
