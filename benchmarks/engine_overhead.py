"""What the engine itself costs: the share of a decode step that is not the model's call, and what batching wins.

Runs the default model offline: `--batch` requests at once, then some one at a time; the last line is JSON.

    python benchmarks/engine_overhead.py [--batch 32] [--tokens 64] [--threads 2] [--profile]
"""

from __future__ import annotations

import argparse
import cProfile
import json
import pstats
import time
from typing import Any

import torch

from latentkv.engine.engine import Engine
from latentkv.engine.sampling_params import SamplingParams
from latentkv.models.load import load_model

ALONE = 3


class Timed:
    """A model that adds up the time of its calls."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self.seconds = 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def forward(self, *args: Any, **options: Any) -> torch.Tensor:
        """The model's own."""
        begin = time.perf_counter()
        logits: torch.Tensor = self._model.forward(*args, **options)
        self.seconds += time.perf_counter() - begin
        return logits


def run(engine: Engine, requests: int, params: SamplingParams) -> tuple[float, int]:
    """Seconds until all are done, and their tokens."""
    for number in range(requests):
        engine.add_request(f"Request {number}: tell me something about the number {number}.", params)
    begin, tokens = time.perf_counter(), 0
    while engine.has_work:
        tokens += sum(len(output.token_ids) for output in engine.step())
    return time.perf_counter() - begin, tokens


def measure(engine: Engine, model: Timed, batch: int, params: SamplingParams) -> dict[str, float]:
    """Overhead at `batch` requests, and throughput there against one request at a time."""
    run(engine, batch, params)
    model.seconds = 0.0
    seconds, tokens = run(engine, batch, params)
    inside = model.seconds
    alone_seconds, alone_tokens = 0.0, 0
    for _ in range(ALONE):
        more_seconds, more_tokens = run(engine, 1, params)
        alone_seconds, alone_tokens = alone_seconds + more_seconds, alone_tokens + more_tokens
    together, alone = tokens / seconds, alone_tokens / alone_seconds
    return {
        "overhead_percent": round(100 * (1 - inside / seconds), 2),
        "batch_tok_s": round(together, 1),
        "alone_tok_s": round(alone, 1),
        "ratio": round(together / alone, 2),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--top-p", type=float, default=1.0)
    parser.add_argument("--profile", action="store_true", help="print where the engine's time goes")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    loaded = load_model(options.model)
    model = Timed(loaded.model)
    engine = Engine(model, loaded.tokenizer)
    params = SamplingParams(
        temperature=options.temperature, top_p=options.top_p, max_tokens=options.tokens, ignore_eos=True
    )
    profile = cProfile.Profile()
    if options.profile:
        run(engine, options.batch, params)
        profile.runcall(run, engine, options.batch, params)
        pstats.Stats(profile).sort_stats("cumulative").print_stats(45)
    print(json.dumps({"batch": options.batch, **measure(engine, model, options.batch, params)}))


if __name__ == "__main__":
    main()
