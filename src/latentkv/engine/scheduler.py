"""Which tokens the next step computes, and in which pages. Knows neither tensors nor text.

Continuous batching: every sequence that generates gets its token, then prompts are computed in chunks, in the order of
waiting.py, as far as tokens, sequences and pages allow; guesses (speculative.py) get what is left. As many sequences as
tokens in a step may run, so that none is left out, and a token waits for one step at most.

When pages run out, the least urgent running sequence, of equals the one that started last, goes back to the queue, and
its pages are evicted when others need them; the most urgent and oldest therefore always goes on, and `add` refuses a
prompt that does not fit even alone. A waiting sequence that is more urgent from the start may take the place of others.

A prompt whose beginning another one is just computing waits for it instead of computing it a second time.

What a sequence finds instead of computing it is the business of reuse.py.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence as Many
from dataclasses import dataclass, field, replace

from latentkv.cache.pages import PageAccountingError, PageAllocator
from latentkv.cache.prefix import Match, PrefixIndex
from latentkv.engine.reuse import Mover, Reuse
from latentkv.engine.speculative import NgramLookup, Speculation
from latentkv.engine.state import Chunk, FinishReason, Sequence, Status, Step
from latentkv.engine.waiting import WaitingLine
from latentkv.errors import CapacityError, OptionError, sentence


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How much one step may compute."""

    max_batch_tokens: int = 2048
    max_batch_sequences: int = 64

    def __post_init__(self) -> None:
        for name in ("max_batch_tokens", "max_batch_sequences"):
            if getattr(self, name) < 1:
                raise OptionError(sentence(name, expected="1 or more", got=getattr(self, name)))


@dataclass(slots=True)
class Counts:
    """What happened so far.

    preemptions:       times that a running sequence had to give way
    restored_tokens:   of preempted sequences, tokens whose rows were found when they came back
    recomputed_tokens: of preempted sequences, tokens whose rows had to be computed again
    queried_tokens:    of prompts that were looked up, each once
    hit_tokens:        those found, by where: "device", "host", "swap", "cache"
    proposed_tokens:   guesses that were computed; accepted_tokens: those that were right
    """

    preemptions: int = 0
    restored_tokens: int = 0
    recomputed_tokens: int = 0
    queried_tokens: int = 0
    proposed_tokens: int = 0
    accepted_tokens: int = 0
    hit_tokens: Counter[str] = field(default_factory=Counter)

    @property
    def reused_tokens(self) -> int:
        """Tokens of prompts that were found, wherever."""
        return self.hit_tokens.total()


class Scheduler:
    """Owns the queue, the running sequences (in the order in which they started) and their pages."""

    def __init__(
        self,
        pages: PageAllocator,
        prefix: PrefixIndex | None,
        limits: Limits,
        mover: Mover | None = None,
        *,
        speculation: Speculation | None = None,
    ) -> None:
        self.pages = pages
        self.prefix = prefix
        self.limits = limits
        self.waiting = WaitingLine()
        self.running: list[Sequence] = []
        self.counts = Counts()
        self._reuse = Reuse(pages, prefix, mover)
        self._speculation = speculation

    @property
    def has_work(self) -> bool:
        """Whether a sequence is waiting or running."""
        return bool(self.waiting or self.running)

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence; one that could outgrow the pool ends where the pool does.

        Raises CapacityError when the pool is too small for the prompt even alone.
        """
        room = self.pages.num_pages * self.pages.page_tokens
        if sequence.prompt_tokens > room:
            raise CapacityError(
                sentence(
                    "prompt",
                    expected=f"at most {room} tokens (the page pool)",
                    got=f"{sequence.prompt_tokens} tokens",
                    remedy="Shorten it, or give the engine more cache_tokens.",
                )
            )
        # The last token of a sequence is never fed back, so it needs no row.
        sequence.limit_tokens = min(sequence.limit_tokens, room + 1)
        if self._speculation is not None:
            sequence.lookup = NgramLookup(self._speculation)
        self.waiting.arrive(sequence)

    def schedule(self) -> Step:
        """Choose the next step; its chunks are empty only when there is no work."""
        self.waiting.now += 1
        self._make_way()
        for sequence in sorted(self.running, key=self.waiting.rank):
            if sequence.status is Status.RUNNING:
                self._make_room(sequence)
        chunks: list[Chunk] = []
        budget = self.limits.max_batch_tokens
        # At most one running sequence is still in its prompt: the one that was admitted last.
        for sequence in sorted(self.running, key=lambda one: one.pending > 1):
            if budget > 0:
                chunks.append(_chunk(sequence, budget))
                budget -= chunks[-1].count
        # A sequence preempted above cannot come back at once: less than its pages and the spare ones is available.
        while budget > 0 and self._admit_next(chunks):
            chunks.append(_chunk(self.running[-1], budget))
            budget -= chunks[-1].count
        chunks = self._with_drafts(chunks, budget)
        for chunk in chunks:
            self.waiting.serve(chunk.sequence, chunk.count)
        return Step(tuple(chunks))

    def commit(self, step: Step, tokens: Many[Many[int]]) -> None:
        """Take note that a step was computed and which tokens it gave to each of `step.sampling`: one or more."""
        given = dict(zip(step.sampling, tokens, strict=True))
        for chunk in step.chunks:
            sequence = chunk.sequence
            if sequence.status is not Status.RUNNING:
                continue  # aborted since the step was scheduled
            new = given.get(chunk, ())
            # Rows of guesses count as far as these came true: each token but the last was one.
            sequence.computed = chunk.start + chunk.count - len(chunk.drafts) + max(0, len(new) - 1)
            sequence.token_ids += new
            self._reuse.index(sequence)
            if chunk.drafts:
                self._learn(chunk, accepted=len(new) - 1)
            if chunk.samples:
                reason = sequence.reason_to_finish()
                if reason is not None:
                    self.finish(sequence, reason)

    def finish(self, sequence: Sequence, reason: FinishReason) -> None:
        """End a sequence now, wherever it stands, and give its pages back; nothing happens to a finished one."""
        if sequence.status is Status.FINISHED:
            return
        if sequence.status is Status.RUNNING:
            self.running.remove(sequence)
        else:
            self.waiting.leave(sequence)
        self._reuse.give_back(sequence)
        self.waiting.ended(sequence)
        sequence.status = Status.FINISHED
        sequence.finish_reason = reason

    def check(self) -> None:
        """Raise PageAccountingError unless pages, sequences and the prefix index agree."""
        self.pages.check()
        holders = Counter(page for sequence in self.running for page in sequence.pages)
        for page in range(self.pages.num_pages):
            if self.pages.references(page) != holders[page]:
                raise PageAccountingError(
                    f"page {page}: {self.pages.references(page)} references, {holders[page]} sequences"
                )
        indexed = self.prefix.pages if self.prefix is not None else frozenset()
        if indexed != self.pages.kept_pages:
            raise PageAccountingError(f"{len(indexed)} pages indexed, {len(self.pages.kept_pages)} kept, not the same")

    def _make_way(self) -> None:
        """Preempt less urgent sequences for the head of the queue, when that gives it the place and pages it lacks."""
        head = self.waiting.first if self.running else None
        if head is None:
            return
        victims = [
            one
            for one in sorted(self.running, key=self.waiting.rank, reverse=True)
            if one.request.priority > head.request.priority and self.waiting.rank(one) > self.waiting.rank(head)
        ]
        for victim in victims:
            short = self.pages.pages_for(len(head.token_ids)) + len(self.running) - self.pages.available_pages
            full = len(self.running) >= min(self.limits.max_batch_sequences, self.limits.max_batch_tokens)
            if not full and short <= 0:
                return
            if short > sum(len(one.pages) for one in victims if one.status is Status.RUNNING):
                return
            self._preempt(victim)

    def _make_room(self, sequence: Sequence) -> None:
        """Pages for the next chunk, preempting the least urgent, which may be `sequence` itself."""
        # Those of a prompt were all taken when it started.
        short = self.pages.pages_for(len(sequence.token_ids)) - len(sequence.pages)
        while short > self.pages.available_pages:
            last = len(self.running) - 1
            victim = max(range(last + 1), key=lambda index: (self.waiting.rank(self.running[index]), index))
            self._preempt(self.running[victim])
            if sequence.status is not Status.RUNNING:
                return
        sequence.pages += self.pages.allocate(max(short, 0))

    def _with_drafts(self, chunks: list[Chunk], budget: int) -> list[Chunk]:
        """The same chunks, those of generating sequences with guesses, as far as tokens and free pages allow."""
        speculation = self._speculation
        generating = sum(chunk.decodes for chunk in chunks)
        if speculation is None or not 0 < generating <= speculation.max_sequences:
            return chunks
        drafted: list[Chunk] = []
        for chunk in chunks:
            sequence = chunk.sequence
            # The last token of a sequence is never fed back.
            most = min(budget, sequence.limit_tokens - len(sequence.token_ids) - 1)
            drafts: tuple[int, ...] = ()
            if chunk.decodes and sequence.lookup is not None:
                drafts = sequence.lookup.propose(sequence.token_ids, most)
            if drafts:
                short = self.pages.pages_for(sequence.computed + 1 + len(drafts)) - len(sequence.pages)
                if short > self.pages.free_pages:
                    drafts = drafts[: len(sequence.pages) * self.pages.page_tokens - sequence.computed - 1]
                else:
                    sequence.pages += self.pages.allocate(max(short, 0))
                budget -= len(drafts)
            drafted.append(replace(chunk, count=chunk.count + len(drafts), drafts=drafts) if drafts else chunk)
        return drafted

    def _learn(self, chunk: Chunk, *, accepted: int) -> None:
        """Count what came of guesses, and give back the pages that only wrong ones needed."""
        sequence = chunk.sequence
        self.counts.proposed_tokens += len(chunk.drafts)
        self.counts.accepted_tokens += accepted
        if sequence.lookup is not None:
            sequence.lookup.learn(proposed=len(chunk.drafts), accepted=accepted, length=len(sequence.token_ids))
        kept = self.pages.pages_for(len(sequence.token_ids))
        self.pages.release(sequence.pages[kept:])
        del sequence.pages[kept:]

    def _admit_next(self, chunks: Many[Chunk]) -> bool:
        """Start the first of the queue that does not wait for a page now computed, if all of its tokens fit."""
        if not self.waiting or len(self.running) >= self.limits.max_batch_sequences:
            return False
        for sequence in self.waiting:
            found = self._reuse.match(sequence.token_ids)
            if not self._is_computed_now(sequence, found, chunks):
                return self._admit(sequence, found)
        return False

    def _is_computed_now(self, sequence: Sequence, found: Match, chunks: Many[Chunk]) -> bool:
        """Whether this step or the rest of a prompt in it computes a full page that `sequence` could use."""
        if self.prefix is None:
            return False
        size = self.pages.page_tokens
        begin = len(found.pages) * size
        # At least one token is left to compute.
        if begin + size > len(sequence.token_ids) - 1:
            return False
        wanted = sequence.token_ids[: begin + size]
        return any(
            len(chunk.sequence.token_ids) >= begin + size
            and chunk.start + chunk.count > begin
            and chunk.sequence.token_ids[: begin + size] == wanted
            for chunk in chunks
            if not chunk.decodes
        )

    def _admit(self, sequence: Sequence, found: Match) -> bool:
        """Start a sequence if all of its tokens fit now."""
        needed = self.pages.pages_for(len(sequence.token_ids)) - len(found.pages)
        self.pages.share(found.pages)
        # One page is left for each running sequence, or the newcomer would soon be preempted for them.
        if needed + len(self.running) > self.pages.available_pages:
            self.pages.release(found.pages)
            return False
        self.waiting.leave(sequence)
        self.running.append(sequence)
        sequence.status = Status.RUNNING
        hits = self._reuse.start(sequence, found)
        self._count_start(sequence, hits)
        return True

    def _count_start(self, sequence: Sequence, hits: Counter[str]) -> None:
        if sequence.preemptions:
            self.counts.restored_tokens += sequence.computed
            self.counts.recomputed_tokens += max(0, sequence.lost_tokens - sequence.computed)
            return
        sequence.reused_tokens = sequence.computed
        self.counts.queried_tokens += sequence.prompt_tokens if self.prefix is not None else 0
        self.counts.hit_tokens += hits

    def _preempt(self, sequence: Sequence) -> None:
        self.running.remove(sequence)
        sequence.lost_tokens = sequence.computed
        self._reuse.give_back(sequence)
        sequence.preemptions += 1
        self.waiting.come_back(sequence)
        self.counts.preemptions += 1


def _chunk(sequence: Sequence, budget: int) -> Chunk:
    count = min(sequence.pending, budget)
    return Chunk(sequence, start=sequence.computed, count=count, samples=count == sequence.pending)
