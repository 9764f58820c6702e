"""A server under everything that goes wrong, for a while: nothing may crash, leak or be answered wrongly.

A server in another process has a pool of 300 pages of 4 tokens and an attention backend that fails every 50th step.
Clients send prompts that share beginnings, hang up in the middle, send prompts that are too long, unknown fields and
broken JSON. Every answer that was waited for has to be the one that the same model gives offline; the books of pages
have to agree, memory has to stay, and no answer may be a 5xx. What is stuck is told by progress, not by the clock: the
whole may be stopped for minutes, or run beside others. The last line is JSON; exit code 1 tells of a failure.

    python benchmarks/soak.py [--minutes 20] [--clients 12] [--model FOLDER] [--seed 0]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from latentkv import LLM, SamplingParams
from latentkv.bench.load.served import Served, serving

TESTS = Path(__file__).resolve().parents[1] / "tests"
ADMIN = {"Authorization": "Bearer soak"}
CONTEXT_TOKENS, PAGE_TOKENS, PAGES = 2048, 4, 300
OPTIONS = (
    *("--cache-format", "f32", "--page-tokens", str(PAGE_TOKENS), "--cache-tokens", str(PAGES * PAGE_TOKENS)),
    *("--max-batch-tokens", "256", "--max-batch-sequences", "16", "--max-queue", "4", "--admin-key", "soak"),
    *("--backend-plugin", "support.failing_backend:make", "--backend-cooldown", "0.5", "--log-level", "error"),
    *("--model-name", "soak", "--request-timeout", "0"),
)
# Two answers may part where both next tokens are as likely as this, in nats: other batches round differently.
TIE = 1e-3
CHECK_EVERY_S = 2.0
# A request that waits while so many tokens are computed for others was forgotten: the pool holds 1200.
MOST_TOKENS_AROUND = 200_000
# So many checks in a row may find no answer, or no new token for those who wait.
PATIENCE_CHECKS = 60
MOST_GROWTH_BYTES = 24 * 2**20
VOCABULARY = 256


@dataclass
class Seen:
    """What happened so far."""

    kinds: Counter[str] = field(default_factory=Counter)
    statuses: Counter[str] = field(default_factory=Counter)
    answers: list[tuple[tuple[int, ...], int, str]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    resident: list[int] = field(default_factory=list)
    computed_tokens: int = 0

    def problem(self, text: str) -> None:
        """Remember and show what must not happen."""
        self.problems.append(text)
        print(f"PROBLEM {text}", flush=True)


class Visitor:
    """One client: does one random thing after the other until the time is over."""

    def __init__(self, session: aiohttp.ClientSession, url: str, seen: Seen, chance: random.Random) -> None:
        self.session = session
        self.url = f"{url}/v1/completions"
        self.seen = seen
        self.chance = chance
        self.computed_before = 0
        self.beginnings = [[chance.randrange(VOCABULARY) for _ in range(100)] for _ in range(3)]

    async def stay(self, until: float) -> None:
        """Do things until then, with short breaks."""
        things = (self.ask, self.hang_up, self.too_long, self.nonsense, self.broken)
        while time.monotonic() < until and not self.seen.problems:
            [thing] = self.chance.choices(things, weights=(70, 14, 5, 6, 5))
            self.seen.kinds[thing.__name__] += 1
            self.computed_before = self.seen.computed_tokens
            try:
                await thing()
            except (aiohttp.ClientError, ValueError) as error:
                self.seen.problem(f"{thing.__name__}: {error!r}")
            await asyncio.sleep(self.chance.random() * 0.05)

    async def ask(self) -> None:
        """A request whose answer is kept, as a stream or whole."""
        prompt, tokens = self.prompt(), self.chance.randint(1, 48)
        stream = self.chance.random() < 0.5
        async with self.session.post(self.url, json=body(prompt, tokens, stream=stream)) as response:
            if not self.told(response.status, 200, 429):
                return
            if response.status == 429:
                await asyncio.sleep(0.05)
            elif stream:
                pieces = [line async for line in response.content if line.startswith(b"data:")]
                if pieces[-1].strip() != b"data: [DONE]":
                    self.seen.problem(f"a stream ended with {pieces[-1]!r}")
                    return
                events = [json.loads(piece[5:]) for piece in pieces[:-1]]
                text = "".join(choice["text"] for event in events for choice in event["choices"])
                self.seen.answers.append((prompt, tokens, text))
            else:
                text = (await response.json())["choices"][0]["text"]
                self.seen.answers.append((prompt, tokens, text))

    async def hang_up(self) -> None:
        """A long request that is left after some pieces, or at once."""
        pieces = self.chance.randint(0, 12)
        async with self.session.post(self.url, json=body(self.prompt(), 400, stream=True)) as response:
            if self.told(response.status, 200, 429):
                async for _ in response.content:
                    pieces -= 1
                    if pieces < 0:
                        break
            response.close()

    async def too_long(self) -> None:
        """More than the model's context, or than the pool."""
        prompt = self.chance.choice((CONTEXT_TOKENS, 3 * CONTEXT_TOKENS)) * [1]
        async with self.session.post(self.url, json=body(tuple(prompt), 8, stream=False)) as response:
            self.told(response.status, 400)

    async def nonsense(self) -> None:
        """JSON that is no request."""
        wrong = self.chance.choice(
            (
                {"max_tokens": -1},
                {"temperature": "hot"},
                {"no_such_field": 1},
                {"prompt": [VOCABULARY * 100]},
                {"prompt": []},
                {"n": 0},
                {"stop": [""]},
                {"stream_options": {"include_usage": True}},
            )
        )
        async with self.session.post(self.url, json={**body((1, 2), 4, stream=False), **wrong}) as response:
            self.told(response.status, 400)

    async def broken(self) -> None:
        """A body that was cut or overwritten."""
        text = bytearray(json.dumps(body(self.prompt(), 4, stream=False)).encode())
        text[self.chance.randrange(len(text) - 1)] = self.chance.choice(b'{}"\\\x00\xff')
        text = text[: self.chance.randrange(1, len(text))]
        headers = {"Content-Type": "application/json"}
        async with self.session.post(self.url, data=bytes(text), headers=headers) as response:
            self.told(response.status, 400, 422)

    def told(self, status: int, *expected: int) -> bool:
        """Count a status; whether it is one of those expected."""
        self.seen.statuses[str(status)] += 1
        if status not in expected:
            self.seen.problem(f"status {status}, expected {expected}")
        return status in expected

    def prompt(self) -> tuple[int, ...]:
        """Tokens; half of all prompts share a beginning."""
        own = [self.chance.randrange(VOCABULARY) for _ in range(self.chance.randint(1, 120))]
        shared = self.chance.choice(self.beginnings)[: self.chance.randint(16, 100)]
        return tuple(shared + own if self.chance.random() < 0.5 else own)


def body(prompt: tuple[int, ...], tokens: int, *, stream: bool) -> dict[str, Any]:
    """A greedy request of exactly so many tokens."""
    return {
        "model": "soak",
        "prompt": list(prompt),
        "max_tokens": tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": stream,
    }


async def watch(session: aiohttp.ClientSession, served: Served, seen: Seen, visitors: Sequence[Visitor]) -> None:
    """Now and then, until there is a problem: does the process live, are the books right, does everybody get on."""
    silent = still = 0
    while not seen.problems:
        await asyncio.sleep(CHECK_EVERY_S)
        if served.process.poll() is not None:
            seen.problem(f"the server ended with {served.process.returncode}")
            return
        before = seen.computed_tokens
        try:
            async with asyncio.timeout(CHECK_EVERY_S):
                live = await look(session, served, seen)
        except TimeoutError:
            silent += 1
        except aiohttp.ClientError as error:
            seen.problem(f"a check: {error!r}")
        else:
            silent, still = 0, still + 1 if live and seen.computed_tokens == before else 0
        if max(silent, still) > PATIENCE_CHECKS:
            seen.problem(f"no answer for {silent} checks, no token for {still}")
        around = max(seen.computed_tokens - visitor.computed_before for visitor in visitors)
        if around > MOST_TOKENS_AROUND:
            seen.problem(f"a request waited while {around} tokens were computed")
        seen.resident.append(served.resident_bytes)


async def look(session: aiohttp.ClientSession, served: Served, seen: Seen) -> int:
    """Check the books and note what was computed; the number of live requests."""
    async with session.post(f"{served.url}/admin/check", headers=ADMIN) as response:
        told = await response.json()
        if response.status != 200 or told["problem"] is not None:
            seen.problem(f"books: {told}")
    async with session.get(f"{served.url}/status") as response:
        status = await response.json()
    seen.computed_tokens = status["tokens"]["prefill"] + status["tokens"]["decode"]
    return int(status["requests"]["live"])


async def visit(served: Served, options: argparse.Namespace, seen: Seen) -> dict[str, Any]:
    """Let everybody in for the time; the guard's own account at the end, when nothing runs."""
    # A connection each: one that is reused may be closed by the server, as idle, while the request is on its way.
    connector = aiohttp.TCPConnector(limit=0, force_close=True)
    async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=None)) as session:
        until = time.monotonic() + options.minutes * 60
        visitors = [
            Visitor(session, served.url, seen, random.Random(f"{options.seed}/{number}"))
            for number in range(options.clients)
        ]
        watching = asyncio.create_task(watch(session, served, seen, visitors))
        visiting = asyncio.gather(*(visitor.stay(until) for visitor in visitors))
        await asyncio.wait((watching, visiting), return_when=asyncio.FIRST_COMPLETED)
        for task in (watching, visiting):
            task.cancel()
        for outcome in await asyncio.gather(watching, visiting, return_exceptions=True):
            if isinstance(outcome, Exception):
                raise outcome
        return {} if seen.problems else await at_rest(session, served, seen)


async def at_rest(session: aiohttp.ClientSession, served: Served, seen: Seen) -> dict[str, Any]:
    """Wait until nothing runs: no page may be held then."""
    for _ in range(100):
        async with session.get(f"{served.url}/status") as response:
            status = await response.json()
        if status["requests"]["live"] == 0 and status["pages"]["held"] == 0:
            break
        await asyncio.sleep(0.1)
    else:
        seen.problem(f"something is still held: {status}")
    async with session.post(f"{served.url}/admin/check", headers=ADMIN) as response:
        problem = (await response.json())["problem"]
        if problem is not None:
            seen.problem(f"books at rest: {problem}")
    async with session.get(f"{served.url}/admin/backend", headers=ADMIN) as response:
        guard = await response.json()
    if not guard["failures"]:
        seen.problem("the backend never failed")
    return {"requests": status["requests"], "failures": guard["failures"], "replaced": guard["replaced_steps"]}


def compare(model: Path, seen: Seen) -> int:
    """Compute every answer again, alone; the number of those that part at a tie."""
    llm = LLM(model, cache_format="f32", page_tokens=PAGE_TOKENS, cache_tokens=16 * CONTEXT_TOKENS)
    ties = 0
    distinct = sorted(set(seen.answers))
    for first in range(0, len(distinct), 256):
        some = distinct[first : first + 256]
        params = [
            SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True, logprobs=2) for _, tokens, _ in some
        ]
        for (prompt, _, text), offline in zip(
            some, llm.generate([prompt for prompt, _, _ in some], params), strict=True
        ):
            if text == offline.text:
                continue
            if any(one.top[0][1] - one.top[1][1] < TIE for one in offline.logprobs):
                ties += 1
            else:
                seen.problem(f"prompt {prompt}: served {text!r}, offline {offline.text!r}")
    return ties


def growth(resident: list[int]) -> int:
    """Bytes from the second quarter of the time to the last."""
    quarter = max(1, len(resident) // 4)
    return round(
        statistics.median(resident[-quarter:]) - statistics.median(resident[quarter : 2 * quarter] or resident)
    )


def run(options: argparse.Namespace) -> dict[str, Any]:
    """The whole of it."""
    seen, begin = Seen(), time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        model = options.model or tiny_model(Path(folder) / "model")
        with serving(str(model), OPTIONS, environment={"PYTHONPATH": python_path()}) as served:
            guard = asyncio.run(visit(served, options, seen))
        if served.process.returncode != 0:
            seen.problem(f"the server ended with {served.process.returncode}")
        grown = growth(seen.resident)
        if grown > MOST_GROWTH_BYTES:
            seen.problem(f"memory grew by {grown} bytes")
        ties = compare(model, seen)
    return {
        "minutes": round((time.monotonic() - begin) / 60, 2),
        "did": dict(seen.kinds),
        "statuses": dict(sorted(seen.statuses.items())),
        "answers_compared": len(seen.answers),
        "parted_at_a_tie": ties,
        "resident_mib": [round(size / 2**20, 1) for size in (seen.resident[0], seen.resident[-1])],
        "grown_mib": round(grown / 2**20, 2),
        **guard,
        "problems": seen.problems,
    }


def tiny_model(folder: Path) -> Path:
    """The random model that tests of commands use, with a longer context."""
    sys.path.insert(0, str(TESTS))
    from support.tiny_chat import save_chat_model

    return save_chat_model(folder, context=CONTEXT_TOKENS)


def python_path() -> str:
    """Where the server finds what this process does, and the failing backend."""
    return ":".join((str(TESTS), *(entry for entry in sys.path if entry)))


def main() -> int:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--clients", type=int, default=12)
    parser.add_argument("--model", type=Path, help="a folder; by default a tiny random model")
    parser.add_argument("--seed", type=int, default=0)
    record = run(parser.parse_args())
    print(json.dumps(record))
    return 1 if record["problems"] else 0


if __name__ == "__main__":
    sys.exit(main())
