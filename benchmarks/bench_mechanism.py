"""Why a smaller cache serves more: MHA, GQA, MQA and MLA of one size, one memory budget and one traffic, in one engine.

Every kind of attention is run in turn on the same requests. "tight" gives all of them the same bytes of cache, "ample"
gives each more than it can use, and "alone" is one request at a time: where a smaller cache wins nothing. Results of
single cases are merged into the file of --out, so that they can be measured one by one; the last line is JSON.

    python benchmarks/bench_mechanism.py [--only long] [--kinds GQA-8,MLA] [--repeats 3] [--threads 2]
        [--out FILE] [--plot FILE]
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from operator import attrgetter
from pathlib import Path
from typing import Any

import torch

from latentkv.backends.isa import active_isa
from latentkv.bench.kinds import KINDS, random_twin
from latentkv.bench.offline import Outcome, Traffic, cache_tokens_for, run_pile
from latentkv.models.model import Model

MIB = 2**20
AMPLE_BYTES = 512 * MIB
SHORT = Traffic(requests=48, prompt_tokens=128, output_tokens=64)
LONG = Traffic(requests=12, prompt_tokens=1024, output_tokens=96)
CASES = {
    "short tight": (SHORT, 8 * MIB),
    "long tight": (LONG, 32 * MIB),
    "short ample": (SHORT, AMPLE_BYTES),
    "long ample": (LONG, AMPLE_BYTES),
    "short alone": (Traffic(requests=2, prompt_tokens=128, output_tokens=64, max_running=1), AMPLE_BYTES),
    "long alone": (Traffic(requests=1, prompt_tokens=4096, output_tokens=64, max_running=1), AMPLE_BYTES),
}


def measure(case: str, kinds: list[str], repeats: int) -> dict[str, dict[str, Any]]:
    """Outcomes by kind, of each the run whose decoding was the median of `repeats`; kinds take turns."""
    models = {kind: random_twin(kind) for kind in kinds}
    runs: dict[str, list[Outcome]] = {kind: [] for kind in kinds}
    for _ in range(repeats):
        for kind, model in models.items():
            runs[kind].append(run_once(case, kind, model))
    found = {}
    for kind, of_kind in runs.items():
        median = sorted(of_kind, key=attrgetter("decode_tok_s"))[repeats // 2]
        found[kind] = {"parameters": models[kind].num_parameters, **asdict(median)}
    return found


def run_once(case: str, kind: str, model: Model) -> Outcome:
    """One pile of requests, told as it ends."""
    traffic, budget = CASES[case]
    outcome = run_pile(model, traffic, cache_tokens=cache_tokens_for(model, budget))
    print(
        f"{case:12} {kind:6} {outcome.bytes_per_token:6} B/token, room for {outcome.capacity_tokens:6} tokens: "
        f"{outcome.mean_running:5.1f} running, {outcome.preemptions:3} preempted, "
        f"{outcome.output_tok_s:6.1f} tok/s in all, {outcome.decode_tok_s:6.1f} while decoding",
        flush=True,
    )
    return outcome


def draw(cases: dict[str, Any], path: Path) -> None:
    """Requests that run at once against tokens per second, one line of kinds for each case that memory limits."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), layout="constrained")
    for axes, name in zip(figure.subplots(1, 2), ("short", "long"), strict=True):
        for memory, marker in (("tight", "o"), ("ample", "s")):
            rows = cases.get(f"{name} {memory}", {}).get("kinds", {})
            axes.plot(
                [row["mean_running"] for row in rows.values()],
                [row["decode_tok_s"] for row in rows.values()],
                marker,
                label=f"{memory} memory",
            )
            for kind, row in rows.items():
                axes.annotate(
                    kind, (row["mean_running"], row["decode_tok_s"]), xytext=(5, 4), textcoords="offset points"
                )
        axes.set_title(f"{name} contexts")
        axes.set_xlabel("requests running at once, mean")
        axes.set_ylabel("tokens decoded per second")
        axes.margins(x=0.2, y=0.1)
        axes.set_ylim(bottom=0)
        axes.set_xlim(left=0)
        axes.grid(visible=True, alpha=0.3)
        axes.legend(loc="lower right")
    figure.savefig(path)


def main() -> None:
    """Measure, print, and merge into the file of results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="cases whose name holds this")
    parser.add_argument("--kinds", default=",".join(KINDS), help="separated by commas")
    parser.add_argument("--repeats", type=int, default=3, help="the median counts")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, help="a JSON file; what it has of other cases and kinds stays")
    parser.add_argument("--plot", type=Path, help="draw what --out has")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    record: dict[str, Any] = {"cases": {}}
    if options.out and options.out.exists():
        record = json.loads(options.out.read_text("utf-8"))
    for case in (name for name in CASES if options.only in name):
        traffic, budget = CASES[case]
        asked = {
            **asdict(traffic),
            "budget_bytes": budget,
            "isa": active_isa(),
            "threads": options.threads,
            "repeats": options.repeats,
        }
        measured = measure(case, options.kinds.split(","), options.repeats)
        kinds = record["cases"].get(case, {}).get("kinds", {}) | measured
        record["cases"][case] = {**asked, "kinds": {kind: kinds[kind] for kind in KINDS if kind in kinds}}
        if options.out:
            options.out.write_text(json.dumps(record, indent=1) + "\n", "utf-8")
    if options.plot:
        draw(record["cases"], options.plot)
    print(json.dumps(record))


if __name__ == "__main__":
    main()
