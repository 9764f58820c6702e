"""What the engine keeps of a request while it runs, and counts of what was computed. Starts nothing."""

from __future__ import annotations

from collections.abc import Sequence as Many
from dataclasses import dataclass

import torch

from latentkv.engine.output import Timings
from latentkv.engine.sampler import Constraint, Row, Sampled
from latentkv.engine.state import Sequence, Step
from latentkv.engine.text import OutputText


@dataclass(slots=True)
class Live:
    """A request that runs, with what only the engine needs of it; times in seconds."""

    sequence: Sequence
    text: OutputText
    generator: torch.Generator
    constraint: Constraint | None
    end_token_ids: tuple[int, ...]
    submitted: float
    started: float | None = None
    first_token: float | None = None

    def row(self, more: Many[int] = ()) -> Row:
        """What sampling needs to know after the output so far and `more`."""
        sequence = self.sequence
        early = sequence.output_tokens + len(more) < sequence.request.params.min_tokens
        return Row(
            params=sequence.request.params,
            prompt_ids=sequence.request.prompt_token_ids,
            output_ids=[*sequence.output_token_ids, *more] if more else sequence.output_token_ids,
            banned_ids=self.end_token_ids if early else (),
            generator=self.generator,
            constraint=self.constraint,
        )

    def timings(self, now: float) -> Timings:
        """Where its time went, until now."""
        started = self.started if self.started is not None else now
        first = self.first_token if self.first_token is not None else now
        return Timings((started - self.submitted) * 1e3, (first - started) * 1e3, (now - first) * 1e3)


@dataclass(frozen=True, slots=True)
class Work:
    """Counts of steps done."""

    steps: int = 0
    prefill_tokens: int = 0
    decode_tokens: int = 0
    prefill_seconds: float = 0.0
    decode_seconds: float = 0.0

    def plus(self, step: Step, given: Many[Many[Sampled]], seconds: float) -> Work:
        """With a step more, which gave these tokens to each of `step.sampling`."""
        decoded = sum(chunk.count for chunk in step.chunks if chunk.decodes)
        share = seconds * decoded / step.num_tokens
        new = sum(len(tokens) for chunk, tokens in zip(step.sampling, given, strict=True) if chunk.decodes)
        return Work(
            self.steps + 1,
            self.prefill_tokens + step.num_tokens - decoded,
            self.decode_tokens + new,
            self.prefill_seconds + seconds - share,
            self.decode_seconds + share,
        )
