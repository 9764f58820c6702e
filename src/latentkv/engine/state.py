"""What is known about one request while it runs. Knows neither tensors nor text."""

from __future__ import annotations

from collections.abc import Sequence as Tokens
from dataclasses import dataclass, field
from enum import Enum
from typing import Literal

from latentkv.cache.prefix import Link
from latentkv.engine.sampling_params import SamplingParams
from latentkv.engine.speculative import NgramLookup

FinishReason = Literal["stop", "length", "abort"]
# Whose a request is, the widest first: an API key, then its user. Each shares what the one before it gets.
Owner = tuple[str, ...]


class Status(Enum):
    """Where a sequence stands: in the queue, computed in steps, or done."""

    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


@dataclass(frozen=True, slots=True)
class Request:
    """What was asked for, as token ids.

    priority: less is more urgent; owner: for a fair share between owners
    """

    id: str
    prompt_token_ids: tuple[int, ...]
    params: SamplingParams
    priority: int = 0
    owner: Owner = ()


@dataclass(slots=True, eq=False)
class Sequence:
    """A request on its way. Written by the scheduler (and its waiting line) only.

    token_ids:      prompt and output
    computed:       how many of them have their rows in the cache
    pages:          pages of the cache those rows are in (and the next ones will be), in order
    prefix:         the prefix index's chain over the full pages so far; None without an index
    limit_tokens:   length of `token_ids` at which the sequence ends
    stop_token_ids: tokens that end it, the model's own included
    reused_tokens:  tokens of the prompt found in the cache or in a lower tier when the sequence first ran
    lost_tokens:    how many had their rows in the cache when the sequence was last preempted
    arrival:        its number among all; queued_at, waited_steps: since when it waits, and how long it did before
    lookup:         guesses its next tokens; None without speculation
    """

    request: Request
    limit_tokens: int
    stop_token_ids: frozenset[int]
    token_ids: list[int] = field(init=False)
    computed: int = 0
    pages: list[int] = field(default_factory=list)
    prefix: Link | None = None
    status: Status = Status.WAITING
    finish_reason: FinishReason | None = None
    reused_tokens: int = 0
    lost_tokens: int = 0
    preemptions: int = 0
    arrival: int = 0
    queued_at: int = 0
    waited_steps: int = 0
    lookup: NgramLookup | None = None

    def __post_init__(self) -> None:
        self.token_ids = list(self.request.prompt_token_ids)

    @property
    def id(self) -> str:
        """The request's name, unique among live requests."""
        return self.request.id

    @property
    def prompt_tokens(self) -> int:
        """Length of the prompt."""
        return len(self.request.prompt_token_ids)

    @property
    def output_tokens(self) -> int:
        """Length of the output so far."""
        return len(self.token_ids) - self.prompt_tokens

    @property
    def output_token_ids(self) -> list[int]:
        """The output so far (a copy)."""
        return self.token_ids[self.prompt_tokens :]

    @property
    def pending(self) -> int:
        """Tokens whose rows are not in the cache yet: 1 while decoding."""
        return len(self.token_ids) - self.computed

    def reason_to_finish(self, more: Tokens[int] = ()) -> FinishReason | None:
        """Why the sequence ends with its last token, or the last of `more` if these came too; None while it goes on."""
        last = more[-1] if more else self.token_ids[-1]
        enough = self.output_tokens + len(more) > self.request.params.min_tokens
        if enough and last in self.stop_token_ids:
            return "stop"
        return "length" if len(self.token_ids) + len(more) >= self.limit_tokens else None


@dataclass(frozen=True, slots=True)
class Chunk:
    """Tokens [start, start + count) of a sequence, computed in one step; `samples` when a token follows from them.

    drafts: the last of them, where they are only guessed; a token follows from each of these and from the one before
    """

    sequence: Sequence
    start: int
    count: int
    samples: bool
    drafts: tuple[int, ...] = ()

    @property
    def decodes(self) -> bool:
        """Whether this is the one new token of a sequence that is already generating, with guesses perhaps."""
        return self.count == 1 + len(self.drafts) and self.start >= self.sequence.prompt_tokens

    @property
    def token_ids(self) -> list[int]:
        """The tokens."""
        own = self.sequence.token_ids[self.start : self.start + self.count - len(self.drafts)]
        return [*own, *self.drafts]


@dataclass(frozen=True, slots=True)
class Step:
    """One call of the model: what it computes, in order."""

    chunks: tuple[Chunk, ...]

    @property
    def num_tokens(self) -> int:
        """Tokens computed, over all chunks."""
        return sum(chunk.count for chunk in self.chunks)

    @property
    def sampling(self) -> tuple[Chunk, ...]:
        """The chunks after which a token is sampled."""
        return tuple(chunk for chunk in self.chunks if chunk.samples)

    @property
    def logit_rows(self) -> list[int]:
        """Which of the step's tokens logits are wanted of: the last of each of `sampling`, and those before guesses."""
        rows: list[int] = []
        end = 0
        for chunk in self.chunks:
            end += chunk.count
            if chunk.samples:
                rows += range(end - 1 - len(chunk.drafts), end)
        return rows
