"""SmolLM2-135M Q4_1 beside llama.cpp: the same file and threads, in turns.

llama.cpp lives in an environment of its own, built for this CPU, whose Python is named:

    python -m venv llama
    CMAKE_ARGS=-DGGML_NATIVE=ON llama/bin/pip install --no-binary llama-cpp-python llama-cpp-python
    python benchmarks/bench_llama_cpp.py --python llama/bin/python

latentkv runs the weights as they are stored, its MLA form and the file's own GQA form (what llama.cpp runs), with
activations in float32 and rounded where that is faster (llama.cpp rounds them to 8 bits always). Prints a table of
medians; the last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
from collections.abc import Callable, Sequence
from typing import Any

import torch

from latentkv import SamplingParams, load_model
from latentkv.engine.engine import Engine
from latentkv.models.load import open_checkpoint

Run = Callable[[list[int], int], dict[str, float]]
PEER = "llama.cpp"


class Peer:
    """The other Python, asked and answered line by line."""

    def __init__(self, python: str, path: str, threads: int, context: int) -> None:
        command = [python, "benchmarks/peers/llama_cpp_generation.py", path, str(threads), str(context)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._answer()

    def run(self, prompt: list[int], tokens: int) -> dict[str, float]:
        """Seconds of prefill and decode."""
        print(json.dumps({"prompt": prompt, "tokens": tokens}), file=self._process.stdin, flush=True)
        return self._answer()

    def close(self) -> None:
        """End it."""
        self._process.terminate()
        self._process.wait()

    def _answer(self) -> dict[str, float]:
        for line in self._process.stdout or ():
            if line.startswith("{"):
                return dict(json.loads(line))
        raise SystemExit("the peer's Python ended; does it have llama-cpp-python?")


def ours(attention: str, activations: str) -> Run:
    """This library with a cache in bfloat16."""
    loaded = load_model(attention=attention, weights="stored", activations=activations)
    engine = Engine(loaded.model, prefix_cache=False)

    def run(prompt: list[int], tokens: int) -> dict[str, float]:
        before = engine.stats()
        engine.add_request(prompt, SamplingParams(temperature=0.0, max_tokens=tokens + 1, ignore_eos=True))
        while engine.has_work:
            engine.step()
        after = engine.stats()
        return {
            "prefill": after.prefill_seconds - before.prefill_seconds,
            "decode": after.decode_seconds - before.decode_seconds,
        }

    return run


def row(name: str, times: Sequence[dict[str, float]], options: argparse.Namespace) -> dict[str, Any]:
    """Medians as tokens per second."""
    middle = {part: statistics.median(one[part] for one in times) for part in ("prefill", "decode")}
    return {
        "engine": name,
        "prefill": round(options.prompt / middle["prefill"], 1),
        "decode": round(options.tokens / middle["decode"], 1),
    }


def main() -> None:
    """Measure, print, and end with one line of JSON."""
    parser = argparse.ArgumentParser(description="SmolLM2-135M Q4_1 beside llama.cpp")
    parser.add_argument("--python", required=True, help="of an environment with llama-cpp-python")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--prompt", type=int, default=128, help="tokens")
    parser.add_argument("--tokens", type=int, default=64, help="to decode")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    path = str(open_checkpoint().files.path)
    peer = Peer(options.python, path, options.threads, options.prompt + options.tokens + 8)
    runs: dict[str, Run] = {
        f"latentkv {attention}, {activations} activations": ours(attention, activations)
        for attention in ("mla", "gqa")
        for activations in ("float", "auto")
    }
    runs[PEER] = peer.run
    prompt = torch.randint(100, 20000, (options.prompt,), generator=torch.Generator().manual_seed(0)).tolist()
    times: dict[str, list[dict[str, float]]] = {name: [] for name in runs}
    for _ in range(options.repeats + 1):
        for name, run in runs.items():
            times[name].append(run(prompt, options.tokens))
    peer.close()
    rows = [row(name, found[1:], options) for name, found in times.items()]  # the first turn warms up
    for one in rows:
        print(f"{one['engine']:40} prefill {one['prefill']:8.1f} tok/s  decode {one['decode']:7.1f} tok/s")
    print(json.dumps({"threads": options.threads, "prompt": options.prompt, "tokens": options.tokens, "rows": rows}))


if __name__ == "__main__":
    main()
