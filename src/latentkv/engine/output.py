"""What the engine hands back: pieces while a request runs, a whole completion at its end, and counts. Plain data."""

from __future__ import annotations

from dataclasses import dataclass

from latentkv.engine.state import FinishReason


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """Natural-log probabilities under the model's own logits, before penalties, temperature and filters.

    top: the likeliest tokens and their log-probabilities, likeliest first; as many as `SamplingParams.logprobs`
    """

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...]


@dataclass(frozen=True, slots=True)
class Timings:
    """Where a request's time went: in the queue, until its first token, and from then to its last."""

    queued_ms: float
    prefill_ms: float
    decode_ms: float


@dataclass(frozen=True, slots=True)
class Output:
    """What one step added to a request.

    text:          what may be shown now; it can be empty for a while (half a character, perhaps a stop string)
    logprobs:      one for each of token_ids when they were asked for, else empty
    finish_reason: None while the request goes on; "stop", "length" or "abort"
    timings:       with the last output only
    reused_tokens: tokens of the prompt that were found in the cache; with the last output only
    """

    request_id: str
    token_ids: tuple[int, ...]
    text: str
    logprobs: tuple[TokenLogprob, ...] = ()
    finish_reason: FinishReason | None = None
    timings: Timings | None = None
    reused_tokens: int = 0

    @property
    def finished(self) -> bool:
        """Whether this is the request's last output."""
        return self.finish_reason is not None


@dataclass(frozen=True, slots=True)
class Completion:
    """A finished request. `token_ids` includes the token that ended it; `text` does not."""

    prompt_token_ids: tuple[int, ...]
    token_ids: tuple[int, ...]
    text: str
    finish_reason: FinishReason
    logprobs: tuple[TokenLogprob, ...]
    timings: Timings


@dataclass(frozen=True, slots=True)
class EngineStats:
    """Counts since the engine was made, and the state of its pages now.

    prefill_tokens:    prompt tokens computed, and those computed again after a preemption
    prefill_seconds:   time of steps; one with prompts and decodes in it is split by their tokens
    reused_tokens:     prompt tokens that were found in the cache or a lower tier instead

    Of the tiers (docs/tiers.md); zero without:
    swapped_out_pages:     pages given to a tier, when they left the cache or (with `cache_dir`) were computed
    swapped_in_pages:      pages that came back into it, from any tier
    checksum_failures:     pages found damaged or missing in a file; they were computed again
    prefix_queries_tokens: prompt tokens that were looked up, each prompt once
    prefix_hit_tokens:     those found, wherever; host_hit_tokens and disk_hit_tokens are parts of it
    restored_tokens:       of preempted requests, tokens found again when they came back
    recomputed_tokens:     of preempted requests, tokens that had to be computed again

    proposed_tokens, accepted_tokens: guesses that were computed, and those of them that were right
    """

    steps: int
    prefill_tokens: int
    decode_tokens: int
    prefill_seconds: float
    decode_seconds: float
    reused_tokens: int
    preemptions: int
    waiting: int
    running: int
    free_pages: int
    held_pages: int
    cached_pages: int
    cache_bytes: int
    bytes_per_token: int
    device_pages: int = 0
    host_pages: int = 0
    host_bytes: int = 0
    disk_pages: int = 0
    disk_bytes: int = 0
    swapped_out_pages: int = 0
    swapped_in_pages: int = 0
    checksum_failures: int = 0
    prefix_queries_tokens: int = 0
    prefix_hit_tokens: int = 0
    host_hit_tokens: int = 0
    disk_hit_tokens: int = 0
    restored_tokens: int = 0
    recomputed_tokens: int = 0
    proposed_tokens: int = 0
    accepted_tokens: int = 0
