"""One engine under a pile of requests: how many ran at once, what was computed twice, and tokens per second.

No server and no clock of arrivals: everything is in the queue when it begins, so memory alone decides how much runs.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

from latentkv.cache.layout import DEFAULT_PAGE_TOKENS, layout_for
from latentkv.engine.engine import Engine
from latentkv.engine.runner import Model
from latentkv.engine.sampling_params import SamplingParams
from latentkv.errors import CapacityError, sentence


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """`requests` prompts of `prompt_tokens` random tokens each, answered with exactly `output_tokens`."""

    requests: int
    prompt_tokens: int
    output_tokens: int
    max_running: int = 64

    @property
    def longest(self) -> int:
        """Tokens that one request keeps in the cache at its end."""
        return self.prompt_tokens + self.output_tokens - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What was measured over one pile.

    output_tok_s:  output tokens of everything over the seconds of everything, prompts included
    decode_tok_s:  tokens of decoding over the time of decoding; mixed steps are split by their tokens
    mean_running:  requests running, averaged over time
    recomputed_tokens: prompt or output tokens computed again after a preemption
    """

    bytes_per_token: int
    cache_bytes: int
    capacity_tokens: int
    seconds: float
    output_tok_s: float
    decode_tok_s: float
    mean_running: float
    peak_running: int
    preemptions: int
    recomputed_tokens: int


def cache_tokens_for(model: Model, budget_bytes: int, *, cache_format: str = "bf16") -> int:
    """Tokens in the whole pages that fit in `budget_bytes`. Raises CapacityError when not one does."""
    layout = layout_for(model.geometry, cache_format, page_tokens=DEFAULT_PAGE_TOKENS)
    pages = budget_bytes // layout.page_bytes
    if pages < 1:
        raise CapacityError(sentence("cache budget", expected=f"{layout.page_bytes} bytes or more", got=budget_bytes))
    return pages * layout.page_tokens


def run_pile(
    model: Model, traffic: Traffic, *, cache_tokens: int, cache_format: str = "bf16", seed: int = 0
) -> Outcome:
    """Run all of it, after a short request that warms up. Raises CapacityError when one request does not fit alone."""
    engine = Engine(
        model,
        cache_format=cache_format,
        cache_tokens=cache_tokens,
        max_batch_sequences=traffic.max_running,
        prefix_cache=False,
    )
    generator = torch.Generator().manual_seed(seed)
    _add(engine, 32, 4, generator)
    while engine.has_work:
        engine.step()
    before = engine.stats()
    for _ in range(traffic.requests):
        _add(engine, traffic.prompt_tokens, traffic.output_tokens, generator)
    running_seconds, peak, begin = 0.0, 0, time.perf_counter()
    last = begin
    while engine.has_work:
        engine.step()
        now = time.perf_counter()
        running = engine.stats().running
        running_seconds += running * (now - last)
        peak, last = max(peak, running), now
    after, seconds = engine.stats(), last - begin
    computed = after.prefill_tokens - before.prefill_tokens
    return Outcome(
        bytes_per_token=after.bytes_per_token,
        cache_bytes=after.cache_bytes,
        capacity_tokens=cache_tokens,
        seconds=seconds,
        output_tok_s=traffic.requests * traffic.output_tokens / seconds,
        decode_tok_s=(after.decode_tokens - before.decode_tokens) / (after.decode_seconds - before.decode_seconds),
        mean_running=running_seconds / seconds,
        peak_running=peak,
        preemptions=after.preemptions - before.preemptions,
        recomputed_tokens=computed - traffic.requests * traffic.prompt_tokens,
    )


def _add(engine: Engine, prompt_tokens: int, output_tokens: int, generator: torch.Generator) -> None:
    prompt = torch.randint(0, engine.model.vocab_size, (prompt_tokens,), generator=generator).tolist()
    engine.add_request(prompt, SamplingParams(temperature=0.0, max_tokens=output_tokens, ignore_eos=True))
