"""Random requests over a tiny pool and all tiers, killed and damaged; any token that is not the right one ends it.

    python tests/engine/tier_stress.py FOLDER FORMAT ROUNDS SEED

Each round a child process serves requests over the same cache folder until it is killed, at a random moment; then
perhaps its files are damaged. The last round is left to finish. What the right tokens are needs no cache: the fake
model's text follows from its tokens.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from pathlib import Path

import torch
from fakes import AnyFormatModel, greedy, greedy_tokens, prompt_of

from latentkv.cache.layout import layout_for
from latentkv.engine.engine import Engine
from latentkv.engine.output import EngineStats

PAGE_TOKENS = 4
WRONG = 3


def make(folder: Path, cache_format: str) -> Engine:
    """Ten pages of cache, room for three in memory, for six in swap and for fourteen that are kept."""
    page_bytes = layout_for(AnyFormatModel.geometry, cache_format, page_tokens=PAGE_TOKENS).page_bytes
    return Engine(
        AnyFormatModel(),
        cache_format=cache_format,
        page_tokens=PAGE_TOKENS,
        cache_tokens=10 * PAGE_TOKENS,
        max_batch_tokens=9,
        max_batch_sequences=4,
        host_cache_bytes=3 * page_bytes,
        swap_dir=folder / "swap",
        swap_bytes=6 * page_bytes,
        cache_dir=folder / "cache",
        cache_dir_bytes=14 * page_bytes,
    )


def serve(engine: Engine, *, requests: int, chance: random.Random) -> EngineStats:
    """Serve random requests that share beginnings, some aborted; raises AssertionError at the first wrong token."""
    prompts: dict[str, list[int]] = {}
    tokens: dict[str, list[int]] = {}
    while requests > 0 or engine.has_work:
        if requests > 0 and len(prompts) < 6 and chance.random() < 0.5:
            requests -= 1
            stem = prompt_of(chance.choice([0, 3, 8, 17]), chance.randrange(3))
            prompt = stem + prompt_of(chance.randrange(1, 7), chance.randrange(4))
            name = engine.add_request(prompt, greedy(max_tokens=chance.randrange(1, 16), ignore_eos=True))
            prompts[name], tokens[name] = prompt, []
        if prompts and chance.random() < 0.02:
            engine.abort(name := chance.choice(list(prompts)))
            del prompts[name]
        for output in engine.step():
            tokens[output.request_id] += output.token_ids
            if output.finished:
                prompt, said = prompts.pop(output.request_id), tokens.pop(output.request_id)
                assert said == greedy_tokens_on(prompt, len(said)), f"wrong tokens after {prompt}"
        engine.check()
    stats = engine.stats()
    assert stats.held_pages == 0
    return stats


def greedy_tokens_on(prompt: list[int], count: int) -> list[int]:
    """The right tokens, past an end of text too."""
    said: list[int] = []
    while len(said) < count:
        said += greedy_tokens(prompt + said, count - len(said))
    return said


def damage(folder: Path, chance: random.Random) -> str:
    """Do something bad to a file of the cache, or nothing."""
    files = [path for path in folder.glob("cache/*/*") if path.stat().st_size]
    kind = chance.choice(["nothing", "nothing", "flip", "flip", "cut", "remove"])
    if kind == "nothing" or not files:
        return "nothing"
    path = chance.choice(files)
    if kind == "remove":
        path.unlink()
    elif kind == "cut":
        os.truncate(path, chance.randrange(path.stat().st_size))
    else:
        data = bytearray(path.read_bytes())
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        path.write_bytes(data)
    return f"{kind} {path.name}"


def child(folder: Path, cache_format: str, seed: int, *, requests: int) -> None:
    """Serve and leave; with exit code WRONG, and a traceback, when anything is not as it must be."""
    try:
        engine = make(folder, cache_format)
        stats = serve(engine, requests=requests, chance=random.Random(seed))
        engine.close()
        print(stats, flush=True)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        sys.stderr.flush()
        os._exit(WRONG)
    os._exit(0)


def main() -> None:
    """Rounds of serving, killing and damaging; exits with 0 if every token of every round was right."""
    folder, cache_format, rounds, seed = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    torch.set_num_threads(1)
    chance = random.Random(seed)
    killed = 0
    for number in range(rounds + 1):
        last = number == rounds
        pid = os.fork()
        if pid == 0:
            child(folder, cache_format, chance.randrange(10**9), requests=25 if last else 10**9)
        if not last:
            time.sleep(chance.uniform(0.05, 0.5))
            os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        if os.waitstatus_to_exitcode(status) not in ((0,) if last else (0, -signal.SIGKILL)):
            sys.exit(f"round {number} failed")
        killed += not last
        print(f"round {number}: {'finished' if last else 'killed'}; {damage(folder, chance)}", flush=True)
    print(f"{killed} kills, every token right")


if __name__ == "__main__":
    main()
