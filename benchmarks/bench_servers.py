"""Two or more servers that run already, under the same load in turn: what one answers beside the other.

At each load every server gets the same requests, one server after the other, and that `--rounds` times, so that a
machine whose speed changes changes for all. Ratios are of the first server to each of the others, round by round.
On a virtual machine each turn is told with the share of the processors' time that its host gave to others meanwhile: a
turn that lost much of it, beside one that did not, says nothing about the servers.

    python benchmarks/bench_servers.py --server ours=http://127.0.0.1:8102 --server vllm=http://127.0.0.1:8103 \
        --concurrency 1,4,16,32 --rounds 3 --lengths 256/48 --out servers.json

An existing --out is added to: loads can be measured one at a time. Ends with a table.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import time
from pathlib import Path
from typing import Any

from latentkv.bench.load.client import Client, Target
from latentkv.bench.load.drive import Load
from latentkv.bench.load.session import as_record, measure_loads
from latentkv.bench.load.traffic import Traffic, parse_lengths

VOCABULARY = 32000
# Threads of the server that was measured before may wait for more work without sleeping for a while.
SETTLE_S = 1.5
SHOWN = ("output_tokens_per_s", "ttft_ms", "tpot_ms", "stolen_percent")
EXTRA = {"temperature": 0, "ignore_eos": True}


class ProcessorTime:
    """How much processors were wanted, and what the host of a virtual machine took of that (Linux)."""

    def __init__(self) -> None:
        self.start = self._ticks()

    @staticmethod
    def _ticks() -> tuple[int, int]:
        """Ticks wanted since the system started, and the stolen ones of these: proc(5), first line of /proc/stat."""
        try:
            user, nice, system, _idle, _iowait, irq, softirq, steal = Path("/proc/stat").read_text().split()[1:9]
        except (OSError, ValueError):
            return 0, 0
        return sum(map(int, (user, nice, system, irq, softirq, steal))), int(steal)

    def stolen_percent(self) -> float | None:
        """Of the time wanted since this was made; None where the system does not tell."""
        wanted, stolen = (now - then for now, then in zip(self._ticks(), self.start, strict=True))
        return round(100 * stolen / wanted, 1) if wanted > 0 else None


async def measure(url: str, concurrency: int, options: argparse.Namespace, seed: int) -> dict[str, Any]:
    """One load on one server, as a record."""
    target = Target(url=url, model="", extra=EXTRA)
    async with Client(target) as client:
        target = target.named(next(iter(await client.models())))
    input, output = parse_lengths(options.lengths)

    def requests(own: int) -> Any:
        return Traffic(input=input, output=output, vocabulary=VOCABULARY, seed=own).requests()

    load = Load(concurrency=concurrency, requests=max(concurrency, options.requests))
    processors = ProcessorTime()
    [measured] = await measure_loads(
        target,
        [load],
        requests,
        warm_up=options.warm_up,
        seed=seed,
        objective=None,
        report=lambda *_: None,
    )
    return as_record(measured, requests=False) | {"stolen_percent": processors.stolen_percent()}


def turns(servers: dict[str, str], concurrency: int, options: argparse.Namespace) -> dict[str, list[dict[str, Any]]]:
    """Every server at one load, `rounds` times; the records of each."""
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in servers}
    for number in range(options.rounds):
        for name, url in servers.items():
            time.sleep(SETTLE_S)
            found[name].append(asyncio.run(measure(url, concurrency, options, options.seed + number)))
            print(concurrency, name, figures(found[name][-1:]), flush=True)
    return found


def figures(records: list[dict[str, Any]]) -> dict[str, float | None]:
    """Medians over rounds; None for what no round tells."""
    stolen = [one["stolen_percent"] for one in records if one.get("stolen_percent") is not None]
    return {
        "output_tokens_per_s": round(statistics.median(one["output_tokens_per_s"] for one in records), 1),
        "ttft_ms": round(statistics.median(one["ttft_ms"]["p50"] for one in records), 1),
        "tpot_ms": round(statistics.median(one["tpot_ms"]["p50"] for one in records), 2),
        "stolen_percent": round(statistics.median(stolen), 1) if stolen else None,
        "errors": sum(sum(one["errors"].values()) for one in records),
    }


def table(found: dict[str, dict[str, list[dict[str, Any]]]]) -> str:
    """Rows of loads: medians of every server, and how many times its tokens the first one makes."""
    lines = [
        "| at once | server | output tokens/s | TTFT, ms | TPOT, ms | taken by others, % | times its output |",
        "|---|---|---|---|---|---|---|",
    ]
    for load, servers in sorted(found.items(), key=lambda item: int(item[0])):
        first = next(iter(servers.values()))
        for name, records in servers.items():
            told = figures(records)
            pairs = zip(first, records, strict=True)
            ratio = statistics.median(ours["output_tokens_per_s"] / one["output_tokens_per_s"] for ours, one in pairs)
            shown = (*(told[figure] for figure in SHOWN), f"{ratio:.2f}")
            lines.append(f"| {load} | {name} | " + " | ".join("" if one is None else str(one) for one in shown) + " |")
    return "\n".join(lines)


def main() -> None:
    """Measure, write and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--server", action="append", required=True, metavar="NAME=URL")
    parser.add_argument("--concurrency", default="1,4,16")
    parser.add_argument("--requests", type=int, default=4, help="of each load and round, at least one per client")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--warm-up", type=int, default=1)
    parser.add_argument("--lengths", default="256/48")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    servers = dict(server.split("=", 1) for server in options.server)
    out: Path | None = options.out
    found = json.loads(out.read_text()) if out is not None and out.exists() else {}
    for concurrency in map(int, options.concurrency.split(",")):
        found[str(concurrency)] = turns(servers, concurrency, options)
        if out is not None:
            out.write_text(json.dumps(found, indent=1) + "\n")
    print(table(found))


if __name__ == "__main__":
    main()
