"""Decoding with and without guesses from the text's own past: an edit, where much is copied, and a free continuation.

Each round runs both engines one after the other on the same prompts, in changing order; what counts
is the median of the ratios. The last line is JSON.

    python benchmarks/bench_speculative.py [--tokens 3] [--rounds 5] [--threads N] [--max-tokens 160]
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys

import torch

from latentkv.engine.engine import Engine
from latentkv.engine.sampling_params import SamplingParams
from latentkv.engine.speculative import Speculation
from latentkv.models.load import LoadedModel, load_model

CODE = """def area(width, height):
    total = width * height
    if total < 0:
        raise ValueError("negative area")
    return total


def volume(width, height, depth):
    total = width * height * depth
    if total < 0:
        raise ValueError("negative volume")
    return total
"""
# Given as they are: one goes on with what it has begun to copy, the other with what it likes.
TEXTS = {
    "copy": f"# A module:\n\n{CODE}\n\n# The same module once more:\n\n{CODE[:40]}",
    "free": "Once upon a time there was a lighthouse keeper who",
}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?")
    parser.add_argument("--tokens", type=int, default=Speculation().tokens)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--max-tokens", type=int, default=160)
    parser.add_argument("--dtype", default="auto")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    loaded = load_model(arguments.model, dtype=arguments.dtype)
    record: dict[str, object] = {"threads": arguments.threads, "tokens": arguments.tokens}
    for name, text in TEXTS.items():
        rows = [round_of(loaded, text, arguments, first=index % 2) for index in range(arguments.rounds)]
        record[name] = summary(rows)
        print(f"{name}: {record[name]}", file=sys.stderr)
    print(json.dumps(record))


def round_of(loaded: LoadedModel, text: str, arguments: argparse.Namespace, *, first: int) -> dict[str, float]:
    """Both engines once; tokens per second of each, and whether they said the same."""
    kinds: list[tuple[str, Speculation | None]] = [("without", None), ("with", Speculation(tokens=arguments.tokens))]
    said: dict[str, list[int]] = {}
    row: dict[str, float] = {}
    for name, speculation in kinds[first:] + kinds[:first]:
        engine = Engine(loaded.model, loaded.tokenizer, speculation=speculation)
        said[name] = generate(engine, text, arguments.max_tokens)
        stats = engine.stats()
        row[name] = stats.decode_tokens / stats.decode_seconds
        if speculation is not None:
            row["proposed"], row["accepted"] = stats.proposed_tokens, stats.accepted_tokens
            row["steps"] = stats.steps
    row["same"] = float(said["with"] == said["without"])
    row["output_tokens"] = len(said["with"])
    return row


def generate(engine: Engine, text: str, max_tokens: int) -> list[int]:
    """The greedy continuation's tokens."""
    engine.add_request(text, SamplingParams(temperature=0, max_tokens=max_tokens, ignore_eos=True))
    tokens: list[int] = []
    while engine.has_work:
        for output in engine.step():
            tokens += output.token_ids
    return tokens


def summary(rows: list[dict[str, float]]) -> dict[str, float]:
    """Medians over the rounds."""
    median = {key: round(statistics.median(row[key] for row in rows), 3) for key in rows[0]}
    median["ratio"] = round(statistics.median(row["with"] / row["without"] for row in rows), 3)
    return median


if __name__ == "__main__":
    main()
