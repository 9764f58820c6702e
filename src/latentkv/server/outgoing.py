"""The JSON that goes back: completions, chunks and counts in OpenAI's shapes. Plain functions of plain values."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from latentkv.engine.output import Output


@dataclass(frozen=True, slots=True)
class Head:
    """What all parts of one answer begin with."""

    id: str
    object: str
    model: str
    created: int = field(default_factory=lambda: int(time.time()))

    def part(self, choices: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
        """The answer, or one chunk of it."""
        return {
            "id": self.id,
            "object": self.object,
            "created": self.created,
            "model": self.model,
            "choices": choices,
            **more,
        }


@dataclass(slots=True)
class Usage:
    """Counts the tokens of one answer. prompt_tokens: of all prompts together, each once"""

    prompt_tokens: int
    completion_tokens: int = 0
    cached_tokens: int = 0

    def add(self, output: Output, *, leads: bool) -> None:
        """Count an output; `leads` for the first choice of a prompt, whose cached tokens are told."""
        self.completion_tokens += len(output.token_ids)
        if leads:
            self.cached_tokens += output.reused_tokens

    def json(self) -> dict[str, Any]:
        """OpenAI's usage object."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": self.cached_tokens},
        }


def finish_reason(outputs: Sequence[Output]) -> str | None:
    """Why a choice ended."""
    return outputs[-1].finish_reason if outputs else None
