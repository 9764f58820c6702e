"""What a prefix costs to bring back from each tier, against computing it again: SmolLM2-135M, time to the first token.

In each row the same prompt is asked three ways of one engine whose pool just holds it: never seen before (computed),
again at once (found in the cache), and again after another prompt has evicted it (back from the tier). The tier `cache`
is asked by a new engine on the same folder, once with the file in the system's memory and once (`cold`) from the disk.
One token more than the pages hold is always computed. The last line is JSON.

    python benchmarks/bench_tiers.py [--formats bf16 int4] [--contexts 512 2048] [--repeats 2]
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from latentkv import SamplingParams, load_model
from latentkv.engine.engine import Engine
from latentkv.models.load import LoadedModel

ONE = SamplingParams(temperature=0.0, max_tokens=1)
ROOM = 2**33


def prompt_of(tokens: int, seed: int) -> list[int]:
    """A prompt of this many random tokens, never the same for two seeds."""
    return torch.randint(0, 49152, (tokens,), generator=torch.Generator().manual_seed(seed)).tolist()


def ask(engine: Engine, prompt: list[int]) -> float:
    """Milliseconds until the prompt's first token."""
    begin = time.perf_counter()
    engine.add_request(prompt, ONE)
    while engine.has_work:
        engine.step()
    return (time.perf_counter() - begin) * 1e3


def in_process(
    model: LoadedModel, folder: Path, tier: str, *, format: str, context: int, repeats: int
) -> dict[str, Any]:
    """A tier of the same process: host or swap."""
    where: dict[str, Any] = {"host_cache_bytes": ROOM} if tier == "host" else {"swap_dir": folder / "swap"}
    engine = Engine(model.model, cache_format=format, cache_tokens=context + 64, **where)
    times: dict[str, list[float]] = {"computed": [], "device": [], tier: []}
    prompts = [prompt_of(context + 1, 100 + repeat) for repeat in range(repeats + 1)]
    for prompt in prompts:
        times["computed"].append(ask(engine, prompt))
        times["device"].append(ask(engine, prompt))
    for prompt in prompts[:-1]:
        times[tier].append(ask(engine, prompt))
    check_loaded(engine, repeats * context)
    engine.close()
    return row(engine, tier, context, times, skip=1)


def across_processes(model: LoadedModel, folder: Path, *, format: str, context: int, repeats: int) -> dict[str, Any]:
    """The persistent tier, warm and cold."""
    options: dict[str, Any] = {"cache_format": format, "cache_tokens": context + 64, "cache_dir": folder / "cache"}
    prompt = prompt_of(context + 1, 1)
    engine = Engine(model.model, **options)
    times: dict[str, list[float]] = {"computed": [ask(engine, prompt)], "cache": [], "cache, cold": []}
    engine.close()
    for tier in ["cache", "cache, cold"] * repeats:
        if tier != "cache":
            forget_file(next((folder / "cache").glob("*/pages.bin")))
        engine = Engine(model.model, **options)
        times[tier].append(ask(engine, prompt))
        check_loaded(engine, context)
        engine.close()
    return row(engine, "cache", context, times, skip=0)


def forget_file(path: Path) -> None:
    """Have the system drop what it holds of a file in memory."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def check_loaded(engine: Engine, tokens: int) -> None:
    """End the run unless this many tokens were loaded: anything else would be a measurement of something else."""
    stats = engine.stats()
    if stats.host_hit_tokens + stats.disk_hit_tokens != tokens:
        raise SystemExit(f"{tokens} tokens were to be loaded: {stats}")


def row(engine: Engine, tier: str, context: int, times: dict[str, list[float]], *, skip: int) -> dict[str, Any]:
    """Medians; of what is computed without the first, which warms up."""
    medians = {
        name: statistics.median(values[skip:] if name == "computed" else values) for name, values in times.items()
    }
    return {
        "tier": tier,
        "format": engine._cache.layout.row.format,
        "context": context,
        "page_bytes": engine._cache.layout.page_bytes,
        "bytes": context * engine.stats().bytes_per_token,
        "ms": {name: round(value, 2) for name, value in medians.items()},
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--formats", nargs="+", default=["bf16", "int4"])
    parser.add_argument("--contexts", nargs="+", type=int, default=[512, 2048])
    parser.add_argument("--repeats", type=int, default=2)
    arguments = parser.parse_args()
    model = load_model()
    results: list[dict[str, Any]] = []
    for format in arguments.formats:
        for context in arguments.contexts:
            case: dict[str, Any] = {"format": format, "context": context, "repeats": arguments.repeats}
            for tier in ("host", "swap", "cache"):
                with tempfile.TemporaryDirectory() as folder:
                    if tier == "cache":
                        results.append(across_processes(model, Path(folder), **case))
                    else:
                        results.append(in_process(model, Path(folder), tier, **case))
                gc.collect()
                print(results[-1], flush=True)
    print(json.dumps({"threads": torch.get_num_threads(), "results": results}))


if __name__ == "__main__":
    main()
