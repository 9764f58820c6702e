"""Latent or head form: is the one the cost model chooses the faster one, and what would a constant threshold lose?

Both forms of the native backend run on the same chunk and context, in turns; the median counts. Regret is the chosen
form's time over the better one's, less one. "threshold" takes the head form from 128 new tokens on, whatever the
context and the sizes. The last line is JSON.

    python benchmarks/bench_forms.py [--repeats 5] [--threads 2]
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from typing import Any

import torch

from latentkv import Batch, CacheLayout, LatentCache
from latentkv.attend import attend, plan_attend, request_for
from latentkv.cache.layout import mla_row
from latentkv.ops.absorb import UpProjection

# heads, L, R, N, V
GEOMETRIES = {
    "V2-Lite": (16, 512, 64, 128, 128),
    "MiniCPM3": (40, 256, 32, 64, 64),
    "GLM-4.7-Flash": (20, 512, 64, 192, 256),
}
NEW = (1, 8, 32, 64, 128, 256, 512, 1024)
CONTEXTS = (256, 1024, 4096)
THRESHOLD = 128


def measure(geometry: tuple[int, ...], new: int, context: int, repeats: int) -> dict[str, Any]:
    """Median seconds of both forms for one chunk, and the form the cost model takes."""
    heads, latent, rope, nope, value = geometry
    layout = CacheLayout(mla_row("bf16", kv_lora_rank=latent, qk_rope_head_dim=rope), 1)
    pages = layout.pages_for(context)
    cache = LatentCache(layout, pages)
    cache.storage.normal_()
    batch = Batch.build(query_lens=[new], context_lens=[context], pages=[list(range(pages))], page_tokens=64)
    weight = torch.randn(heads * (nope + value), latent) * latent**-0.5
    up = UpProjection.from_kv_b_proj(weight, num_heads=heads, qk_nope_head_dim=nope)
    query = torch.randn(new, heads, nope + rope)
    times: dict[str, list[float]] = {"latent": [], "head": []}
    plans = {
        form: plan_attend(request_for(query, cache.layer(0), batch, up=up, form=form), batch)  # type: ignore[arg-type]
        for form in times
    }
    for repeat in range(repeats + 1):
        for form, spent in times.items():
            begin = time.perf_counter()
            attend(query, cache.layer(0), batch, scale=0.07, up=up, form=form, plan=plans[form])  # type: ignore[arg-type]
            if repeat:
                spent.append(time.perf_counter() - begin)
    [chosen] = plan_attend(request_for(query, cache.layer(0), batch, up=up), batch).forms
    return {"chosen": chosen, **{form: statistics.median(spent) for form, spent in times.items()}}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rows: list[dict[str, Any]] = []
    print(
        f"{'geometry':14}{'new':>6}{'context':>9}{'latent ms':>11}{'head ms':>10}  "
        f"{'chosen':8}{'regret':>8}{'threshold':>11}"
    )
    for name, geometry in GEOMETRIES.items():
        for context in CONTEXTS:
            for new in (count for count in NEW if count <= context):
                cell = measure(geometry, new, context, arguments.repeats)
                best = min(cell["latent"], cell["head"])
                constant = "head" if new >= THRESHOLD else "latent"
                row = {"geometry": name, "new": new, "context": context, **cell}
                row |= {"regret": cell[cell["chosen"]] / best - 1, "threshold_regret": cell[constant] / best - 1}
                rows.append(row)
                print(
                    f"{name:14}{new:6}{context:9}{cell['latent'] * 1e3:11.2f}{cell['head'] * 1e3:10.2f}  "
                    f"{cell['chosen']:8}{row['regret']:8.0%}{row['threshold_regret']:11.0%}"
                )
    within = sum(row["regret"] <= 0.1 for row in rows) / len(rows)
    kept = sum(row["threshold_regret"] <= 0.1 for row in rows) / len(rows)
    worst = max(row["regret"] for row in rows), max(row["threshold_regret"] for row in rows)
    print(
        f"within 10 % of the better form: cost model {within:.0%}, threshold {kept:.0%}; "
        f"worst {worst[0]:.0%}, {worst[1]:.0%}"
    )
    print(json.dumps({"threads": arguments.threads, "within_10_percent": within, "rows": rows}))


if __name__ == "__main__":
    main()
