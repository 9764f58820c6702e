"""What is known about one request while it runs. Knows neither tensors nor text."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Literal

from latentkv.cache.prefix import Link
from latentkv.engine.sampling_params import SamplingParams

FinishReason = Literal["stop", "length", "abort"]


class Status(Enum):
    """Where a sequence stands: in the queue, computed in steps, or done."""

    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


@dataclass(frozen=True, slots=True)
class Request:
    """What was asked for, as token ids."""

    id: str
    prompt_token_ids: tuple[int, ...]
    params: SamplingParams


@dataclass(slots=True, eq=False)
class Sequence:
    """A request on its way. Written by the scheduler only.

    token_ids:      prompt and output
    computed:       how many of them have their rows in the cache
    pages:          pages of the cache those rows are in (and the next ones will be), in order
    prefix:         the prefix index's chain over the full pages so far; None without an index
    limit_tokens:   length of `token_ids` at which the sequence ends
    stop_token_ids: tokens that end it, the model's own included
    reused_tokens:  tokens of the prompt found in the cache or in a lower tier when the sequence first ran
    lost_tokens:    how many had their rows in the cache when the sequence was last preempted
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

    def reason_to_finish(self) -> FinishReason | None:
        """Why the sequence ends with its last token; None while it goes on."""
        enough = self.output_tokens > self.request.params.min_tokens
        if enough and self.token_ids[-1] in self.stop_token_ids:
            return "stop"
        return "length" if len(self.token_ids) >= self.limit_tokens else None


@dataclass(frozen=True, slots=True)
class Chunk:
    """Tokens [start, start + count) of a sequence, computed in one step; `samples` when a token follows from them."""

    sequence: Sequence
    start: int
    count: int
    samples: bool

    @property
    def decodes(self) -> bool:
        """Whether this is the one new token of a sequence that is already generating."""
        return self.count == 1 and self.start >= self.sequence.prompt_tokens


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
