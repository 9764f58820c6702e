"""A model end to end: tokens per second of prefill and decode at several contexts, with transformers beside it.

All contenders run the same weights on the same threads and take turns. Ours is the whole engine, scheduler and sampler
included, over contexts that were computed; transformers is its bare model over a cache filled with any numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from latentkv.bench.peers import TransformersPeer
from latentkv.bench.turns import Contender, take_turns
from latentkv.cache.layout import DEFAULT_PAGE_TOKENS
from latentkv.engine.engine import Engine
from latentkv.engine.sampling_params import SamplingParams
from latentkv.models.model import Model

PEER_DECODE_TOKENS = 3
Report = Callable[[int, int, str], None]


@dataclass(frozen=True, slots=True)
class Case:
    """Prefill of `new_tokens` after `context_tokens`; decode at `context_tokens` where `new_tokens` is 0."""

    context_tokens: int
    new_tokens: int = 0

    @property
    def name(self) -> str:
        """For tables."""
        if not self.new_tokens:
            return f"decode at {self.context_tokens or 'empty'}"
        return f"prefill {self.new_tokens}" + (f" after {self.context_tokens}" if self.context_tokens else "")


CASES = (
    Case(0, 512),
    Case(0, 2048),
    Case(4096, 1024),
    *(Case(context) for context in (0, 128, 2048, 4096, 8192)),
)


@dataclass(frozen=True)
class Speed:
    """Tokens per second of one contender in one case: the median, the best, and how many runs there were."""

    engine: str
    median: float
    best: float
    runs: int


@dataclass(frozen=True)
class Row:
    """One line of the table; the first speed is ours."""

    case: Case
    speeds: tuple[Speed, ...] = field(default_factory=tuple)

    @property
    def ratio(self) -> float | None:
        """Ours over the fastest of the others; None without others."""
        others = [speed.median for speed in self.speeds[1:]]
        return self.speeds[0].median / max(others) if others else None


class OurEngine:
    """The engine as users run it, one request at a time. Contexts are computed once and then found as prefixes."""

    def __init__(self, model: Model, *, cache_format: str, cache_tokens: int) -> None:
        self._engine = Engine(model, cache_format=cache_format, cache_tokens=cache_tokens)
        self._generator = torch.Generator().manual_seed(1)
        self._vocab = model.vocab_size
        self._base: list[int] = []

    def prefill(self, case: Case) -> float:
        """Seconds for a prompt that was never seen, after a context that is cached."""
        self._remember(case.context_tokens)
        prompt = self._context(case.context_tokens) + self._fresh(case.new_tokens)
        before = self._engine.stats()
        self._run(prompt, tokens=1)
        return self._engine.stats().prefill_seconds - before.prefill_seconds

    def decode(self, case: Case, tokens: int) -> float:
        """Seconds for `tokens` tokens, one after the other."""
        before = self._engine.stats()
        self._run(self._context(case.context_tokens) or self._fresh(1), tokens=tokens + 1)
        return self._engine.stats().decode_seconds - before.decode_seconds

    def _remember(self, tokens: int) -> None:
        if tokens:
            self._run(self._context(tokens), tokens=1)

    def _run(self, prompt: Sequence[int], *, tokens: int) -> None:
        self._engine.add_request(prompt, SamplingParams(temperature=0.0, max_tokens=tokens, ignore_eos=True))
        while self._engine.has_work:
            self._engine.step()

    def _context(self, tokens: int) -> list[int]:
        """The first tokens of one long random text: the pages of one context serve every longer one."""
        self._base += self._fresh(tokens - len(self._base)) if tokens > len(self._base) else []
        return self._base[:tokens]

    def _fresh(self, tokens: int) -> list[int]:
        return torch.randint(0, self._vocab, (tokens,), generator=self._generator).tolist()


def measure_model(
    model: Model,
    cases: Sequence[Case],
    *,
    peers: Sequence[TransformersPeer] = (),
    repeats: int = 5,
    decode_tokens: int = 32,
    cache_format: str = "bf16",
    report: Report,
) -> list[Row]:
    """One row for each case, everybody in turns.

    report: called with (runs done, runs in all, what is run now)
    """
    ours = OurEngine(model, cache_format=cache_format, cache_tokens=_cache_tokens(cases, repeats, decode_tokens))
    runs = (repeats + 1) * (1 + len(peers))
    rows = []
    for number, case in enumerate(cases):
        contenders = _contenders(case, ours, peers, decode_tokens)

        def tell(done: int, engine: str, *, number: int = number, case: Case = case) -> None:
            report(number * runs + done, len(cases) * runs, f"{case.name}, {engine}")

        take_turns([contender for contender, _ in contenders], repeats=repeats, report=tell)
        rows.append(Row(case, tuple(_speed(contender, tokens) for contender, tokens in contenders)))
    report(len(cases) * runs, len(cases) * runs, "")
    return rows


def as_record(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """JSON-ready values: tokens per second by engine."""
    return [
        {
            "case": row.case.name,
            "context_tokens": row.case.context_tokens,
            "new_tokens": row.case.new_tokens,
            "tokens_per_second": {
                speed.engine: {"median": round(speed.median, 3), "best": round(speed.best, 3), "runs": speed.runs}
                for speed in row.speeds
            },
            "ratio_to_fastest_other": None if row.ratio is None else round(row.ratio, 3),
        }
        for row in rows
    ]


def _contenders(
    case: Case, ours: OurEngine, peers: Sequence[TransformersPeer], decode_tokens: int
) -> list[tuple[Contender, int]]:
    """Everybody who runs the case, and how many tokens they compute."""
    tokens = case.new_tokens or decode_tokens
    found = [(Contender("latentkv", lambda: _ours(ours, case, tokens)), tokens)]
    peer_tokens = case.new_tokens or min(decode_tokens, PEER_DECODE_TOKENS)
    prompt = [1 + index % 100 for index in range(case.new_tokens)]
    for peer in peers:

        def run(peer: TransformersPeer = peer) -> float:
            if prompt:
                return peer.prefill(prompt, context_tokens=case.context_tokens)
            return peer.decode(context_tokens=case.context_tokens, tokens=peer_tokens)

        name = f"transformers {str(peer.dtype).removeprefix('torch.')}"
        found.append((Contender(name, run, peer=True), peer_tokens))
    return found


def _ours(ours: OurEngine, case: Case, tokens: int) -> float:
    return ours.prefill(case) if case.new_tokens else ours.decode(case, tokens)


def _speed(contender: Contender, tokens: int) -> Speed:
    return Speed(contender.name, tokens / contender.median, tokens / min(contender.seconds), len(contender.seconds))


def _cache_tokens(cases: Sequence[Case], repeats: int, decode_tokens: int) -> int:
    """Room for every prompt of the whole run, so that no context is dropped and computed again."""
    longest = max(case.context_tokens for case in cases)
    written = sum(case.new_tokens + decode_tokens + 2 * DEFAULT_PAGE_TOKENS for case in cases) * (repeats + 1)
    return longest + written
