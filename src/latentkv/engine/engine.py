"""Many requests, one model: takes requests, computes them step by step, hands back what each step added.

The loop is `schedule, run, sample, commit`. An engine keeps everything it knows in itself: any number of them can live
in one process. It is not thread-safe; call it from one thread.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Sequence as Many
from dataclasses import asdict, replace
from itertools import count
from pathlib import Path

from latentkv.cache.latent import LatentCache
from latentkv.cache.layout import DEFAULT_PAGE_TOKENS, CacheLayout, layout_for
from latentkv.cache.pages import PageAccountingError, PageAllocator
from latentkv.cache.prefix import PrefixIndex
from latentkv.cache.tiers.options import DEFAULT_DISK_BYTES, TierOptions
from latentkv.engine.identity import cache_identity, describe
from latentkv.engine.live import Live, Work
from latentkv.engine.mover import PageMover
from latentkv.engine.output import EngineStats, Output
from latentkv.engine.runner import Model, run_step
from latentkv.engine.sampler import Constraint, Sampled, make_generator
from latentkv.engine.sampling_params import SamplingParams
from latentkv.engine.scheduler import Limits, Scheduler
from latentkv.engine.speculative import Speculation
from latentkv.engine.state import Chunk, Owner, Request, Sequence
from latentkv.engine.text import OutputText, StopMatcher, Tokenizer
from latentkv.engine.verify import sample_step
from latentkv.errors import CapacityError, OptionError, TokenizerError, sentence

DEFAULT_CACHE_TOKENS = 32768
DEFAULT_CACHE_BYTES = 2 * 1024**3


class Engine:
    """Continuous batching over one model.

    tokenizer:           needed for prompts and output as text; without one, both are token ids only
    cache_format:        how rows are stored: "bf16", "f16" (finer, but only up to 65504), "f32", or as codes: "fp8",
                         "int8", "int6", "int4" (docs/cache_formats.md has their bytes and their quality)
    page_tokens:         tokens in a page, a power of two from 1 to 256
    cache_tokens:        tokens the cache holds for all requests together, rounded up to pages; the default is 32768, or
                         as many as fit in 2 GiB. The memory is claimed from the system as it is first used.
    max_batch_tokens:    most tokens computed in one step; longer prompts are computed in chunks
    max_batch_sequences: most requests computed at once
    prefix_cache:        reuse pages of earlier prompts and outputs that begin the same
    host_cache_bytes:    memory for pages that leave the cache (docs/tiers.md, also for the next four); 0 = none
    swap_dir:            folder for pages that find no room there, up to `swap_bytes`; None = none
    cache_dir:           folder for all full pages, up to `cache_dir_bytes` for this model: the next process finds them
    speculation:         guess tokens that follow from the sequence's own text (docs/scheduling.md); None = off
    adapter:             what else decides a model's rows, the name of a LoRA for instance; no page is shared across it

    Raises OptionError for a value outside its range, or a folder that cannot be used.
    """

    def __init__(
        self,
        model: Model,
        tokenizer: Tokenizer | None = None,
        *,
        cache_format: str = "bf16",
        page_tokens: int = DEFAULT_PAGE_TOKENS,
        cache_tokens: int | None = None,
        max_batch_tokens: int = 2048,
        max_batch_sequences: int = 64,
        prefix_cache: bool = True,
        host_cache_bytes: int = 0,
        swap_dir: str | Path | None = None,
        swap_bytes: int = DEFAULT_DISK_BYTES,
        cache_dir: str | Path | None = None,
        cache_dir_bytes: int = DEFAULT_DISK_BYTES,
        adapter: str = "",
        speculation: Speculation | None = None,
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self._limits = Limits(max_batch_tokens=max_batch_tokens, max_batch_sequences=max_batch_sequences)
        layout = layout_for(model.geometry, cache_format, page_tokens=page_tokens)
        tiers = TierOptions(
            host_cache_bytes=host_cache_bytes,
            swap_dir=swap_dir,
            swap_bytes=swap_bytes,
            cache_dir=cache_dir,
            cache_dir_bytes=cache_dir_bytes,
        )
        tiers.check_prefix_cache(prefix_cache=prefix_cache)
        self._cache = LatentCache(layout, _pool_pages(layout, cache_tokens), device=model.device)
        self._prefix_cache = prefix_cache
        self._speculation = speculation
        self._identity = cache_identity(model, layout, adapter, all_weights=cache_dir is not None)
        self._mover = PageMover.open(self._cache, tiers, identity=self._identity, model=describe(model))
        if self._mover.tiers is not None:
            weakref.finalize(self, self._mover.tiers.close)
        self._scheduler = self._make_scheduler()
        self._live: dict[str, Live] = {}
        self._numbers = count()
        self._work = Work()

    @property
    def has_work(self) -> bool:
        """Whether a request is waiting or running."""
        return self._scheduler.has_work

    @property
    def capacity_tokens(self) -> int:
        """Most tokens, prompt and output together, that one request can have."""
        # The last token of a sequence is never fed back, so it needs no row.
        pool = self._cache.num_pages * self._cache.layout.page_tokens + 1
        return min(self.model.max_position_embeddings, pool)

    @property
    def cache_format(self) -> str:
        """How rows are stored."""
        return self._cache.layout.row.format

    @property
    def max_running(self) -> int:
        """Most requests that are computed at once."""
        return self._limits.max_batch_sequences

    def add_request(
        self,
        prompt: str | Many[int],
        params: SamplingParams | None = None,
        *,
        request_id: str | None = None,
        constraint: Constraint | None = None,
        priority: int = 0,
        owner: Owner = (),
    ) -> str:
        """Queue a prompt (text, or token ids taken as they are); returns the request's id.

        constraint: which tokens may follow, a grammar for instance; used by this request alone
        priority: less is more urgent
        owner: whose request it is; owners of equally urgent requests share the machine (docs/scheduling.md)

        Raises OptionError for an empty prompt, unknown token ids or an id in use, TokenizerError for text without a
        tokenizer, CapacityError for a prompt that is longer than the model's context or the cache.
        """
        params = params if params is not None else SamplingParams()
        name = request_id if request_id is not None else self._new_id()
        if name in self._live:
            raise OptionError(sentence("request_id", expected="one that no live request has", got=repr(name)))
        token_ids = self.encode(prompt)
        self._check_params(params)
        ends = frozenset(params.stop_token_ids) | (frozenset() if params.ignore_eos else self.model.eos_token_ids)
        sequence = Sequence(
            Request(name, token_ids, params, priority, owner),
            limit_tokens=min(len(token_ids) + params.max_tokens, self.model.max_position_embeddings),
            stop_token_ids=ends,
        )
        self._scheduler.add(sequence)
        self._live[name] = Live(
            sequence,
            OutputText(
                self.tokenizer.stream(after=token_ids) if self.tokenizer is not None else None,
                StopMatcher(params.stop_strings),
                unstoppable_tokens=params.min_tokens,
            ),
            make_generator(params.seed),
            constraint,
            tuple(sorted(ends)),
            time.perf_counter(),
        )
        return name

    def encode(self, prompt: str | Many[int]) -> tuple[int, ...]:
        """The token ids of a prompt, checked; raises what `add_request` raises for it."""
        if isinstance(prompt, str):
            if self.tokenizer is None:
                raise TokenizerError("this engine has no tokenizer: give prompts as token ids, or give it a tokenizer.")
            token_ids = tuple(self.tokenizer.encode(prompt))
        else:
            token_ids = tuple(prompt)
        if not token_ids:
            raise OptionError(sentence("prompt", expected="at least one token", got="none"))
        for token_id in token_ids:
            self._check_token_id("prompt", token_id)
        context = self.model.max_position_embeddings
        if len(token_ids) >= context:
            raise CapacityError(
                sentence(
                    "prompt",
                    expected=f"at most {context - 1} tokens (the model's context is {context}, and one is for output)",
                    got=len(token_ids),
                    remedy="Shorten the prompt.",
                )
            )
        return token_ids

    def step(self) -> list[Output]:
        """Compute one step; what it added, for each request that got a token. Empty without work."""
        begin = time.perf_counter()
        step = self._scheduler.schedule()
        if not step.chunks:
            return []
        for chunk in step.chunks:
            live = self._live[chunk.sequence.id]
            live.started = live.started if live.started is not None else begin
        logits = run_step(self.model, self._cache, step)
        given = sample_step(logits, step, lambda chunk, more: self._live[chunk.sequence.id].row(more))
        self._scheduler.commit(step, [[token.token_id for token in tokens] for tokens in given])
        now = time.perf_counter()
        before, self._work = self._work, self._work.plus(step, given, now - begin)
        prefill_seconds = self._work.prefill_seconds - before.prefill_seconds
        self._mover.computed(self._work.prefill_tokens - before.prefill_tokens, prefill_seconds)
        return [self._output(chunk, tokens, now) for chunk, tokens in zip(step.sampling, given, strict=True)]

    def abort(self, request_id: str) -> bool:
        """End a request now and free its pages; False if no such request is alive. It has no further output."""
        live = self._live.pop(request_id, None)
        if live is None:
            return False
        self._scheduler.finish(live.sequence, "abort")
        return True

    def recover(self) -> None:
        """Abort everything after an interruption at an unknown point, a KeyboardInterrupt for instance.

        Cached prefixes stay if the books still agree, and are dropped if the interruption fell into an update.
        """
        self._mover.recover()
        try:
            for request_id in list(self._live):
                self.abort(request_id)
            self._scheduler.check()
        except (PageAccountingError, ValueError):
            self._live.clear()
            done = self._scheduler
            self._scheduler = self._make_scheduler()
            self._scheduler.counts = done.counts

    def is_live(self, request_id: str) -> bool:
        """Whether the request is waiting or running."""
        return request_id in self._live

    def stats(self) -> EngineStats:
        """Counts since the engine was made, and the state of its pages now."""
        work, scheduler, pages = self._work, self._scheduler, self._scheduler.pages
        counts = scheduler.counts
        return EngineStats(
            steps=work.steps,
            prefill_tokens=work.prefill_tokens,
            decode_tokens=work.decode_tokens,
            prefill_seconds=work.prefill_seconds,
            decode_seconds=work.decode_seconds,
            reused_tokens=counts.reused_tokens,
            preemptions=counts.preemptions,
            waiting=len(scheduler.waiting),
            running=len(scheduler.running),
            free_pages=pages.free_pages,
            held_pages=pages.held_pages,
            cached_pages=pages.cached_pages,
            cache_bytes=self._cache.size_bytes,
            bytes_per_token=self._cache.layout.bytes_per_token,
            device_pages=pages.num_pages,
            prefix_queries_tokens=counts.queried_tokens,
            prefix_hit_tokens=counts.reused_tokens,
            host_hit_tokens=counts.hit_tokens["host"],
            disk_hit_tokens=counts.hit_tokens["swap"] + counts.hit_tokens["cache"],
            restored_tokens=counts.restored_tokens,
            recomputed_tokens=counts.recomputed_tokens,
            proposed_tokens=counts.proposed_tokens,
            accepted_tokens=counts.accepted_tokens,
            **asdict(self._mover.stats()),
        )

    def check(self) -> None:
        """Raise PageAccountingError unless pages, requests, the prefix index and the tiers agree."""
        self._scheduler.check()
        self._mover.check()

    def close(self) -> None:
        """Write to `cache_dir` what waits to be written and let go of its folders; the engine cannot go on then.

        Happens by itself when the engine is deleted or the program ends. Nothing happens the second time.
        """
        if self._mover.tiers is not None:
            self._mover.tiers.close()

    def _make_scheduler(self) -> Scheduler:
        layout = self._cache.layout
        prefix = None
        if self._prefix_cache:
            prefix = PrefixIndex(page_tokens=layout.page_tokens, identity=self._identity)

        mover = self._mover  # not `self`: in a cycle the engine would not let go of its folders when it is deleted

        def evicted(page: int) -> None:
            link = prefix.forget(page) if prefix is not None else None
            if link is not None:
                mover.save(link, page)

        pages = PageAllocator(self._cache.num_pages, page_tokens=layout.page_tokens, on_evict=evicted)
        return Scheduler(pages, prefix, self._limits, mover, speculation=self._speculation)

    def _output(self, chunk: Chunk, tokens: Many[Sampled], now: float) -> Output:
        """What sampled tokens add to their request; stop strings are found here, and end it."""
        sequence = chunk.sequence
        live = self._live[sequence.id]
        live.first_token = live.first_token if live.first_token is not None else now
        reason = sequence.finish_reason
        text = ""
        for index, token in enumerate(tokens):
            if reason != "stop" or index < len(tokens) - 1:
                text += live.text.push(token.token_id)
            if live.text.stopped:
                tokens = tokens[: index + 1]
                break
        if reason is not None:
            text += live.text.finish()
        if live.text.stopped:
            self._scheduler.finish(sequence, "stop")
            reason = "stop"
        output = Output(
            sequence.id,
            tuple(token.token_id for token in tokens),
            text,
            tuple(token.logprob for token in tokens if token.logprob is not None),
            reason,
        )
        if reason is None:
            return output
        del self._live[sequence.id]
        return replace(output, timings=live.timings(now), reused_tokens=sequence.reused_tokens)

    def _new_id(self) -> str:
        return next(name for number in self._numbers if (name := f"request-{number}") not in self._live)

    def _check_params(self, params: SamplingParams) -> None:
        for token_id in params.stop_token_ids:
            self._check_token_id("stop_token_ids", token_id)
        for token_id in params.logit_bias:
            self._check_token_id("logit_bias", token_id)
        if params.stop_strings and self.tokenizer is None:
            raise TokenizerError("stop strings need a tokenizer: use stop_token_ids, or give the engine a tokenizer.")

    def _check_token_id(self, what: str, token_id: object) -> None:
        if isinstance(token_id, bool) or not isinstance(token_id, int) or not 0 <= token_id < self.model.vocab_size:
            expected = f"token ids from 0 to {self.model.vocab_size - 1}"
            raise OptionError(sentence(what, expected=expected, got=repr(token_id)))


def _pool_pages(layout: CacheLayout, cache_tokens: int | None) -> int:
    if cache_tokens is None:
        return max(1, min(layout.pages_for(DEFAULT_CACHE_TOKENS), DEFAULT_CACHE_BYTES // layout.page_bytes))
    if isinstance(cache_tokens, bool) or not isinstance(cache_tokens, int) or cache_tokens < 1:
        raise OptionError(sentence("cache_tokens", expected="1 or more", got=repr(cache_tokens)))
    return layout.pages_for(cache_tokens)
