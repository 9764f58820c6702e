"""Latent or head form: is the one the cost model chooses the faster one, and what would a constant threshold lose?

Both forms of the native backend run on the same chunk and context, in turns; the median counts. Where the first turn
says that one takes more than twice as long, it is the last one. With one thread the processor's own time counts, of
which other programs take less. Regret is the chosen form's time over the better one's, less one. "threshold" takes
the head form from 128 new tokens on, whatever the context, the sizes and the format.

    python benchmarks/bench_forms.py [--isa avx2] [--formats bf16,f32,int8] [--query bfloat16] [--repeats 5]
                                     [--threads 2] [--json benchmarks/results/forms.json]

--json adds the cases to a record, in place of those of the same instruction set, format and queries.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from latentkv import Batch, CacheLayout, LatentCache
from latentkv.attend import attend_planned, plan_attend, request_for
from latentkv.backends.isa import find_isa
from latentkv.cache.layout import mla_row
from latentkv.ops.absorb import UpProjection

# heads, L, R, N, V
GEOMETRIES = {
    "V2-Lite": (16, 512, 64, 128, 128),
    "MiniCPM3": (40, 256, 32, 64, 64),
    "GLM-4.7-Flash": (20, 512, 64, 192, 256),
}
NEW = (8, 32, 64, 128, 256, 512)
CONTEXTS = (256, 1024, 4096)
THRESHOLD = 128
CLEAR = 2.0  # times as long: which form is better needs no second turn
LONG_SECONDS = 0.2  # a turn that needs no warming up
ENOUGH_SECONDS = 0.8  # in all turns of a case
WITHIN = 0.1


@dataclass(frozen=True)
class Case:
    """One chunk of new tokens and its context; milliseconds of both forms, and the form chosen."""

    geometry: str
    new: int
    context: int
    latent: float
    head: float
    chosen: str

    def regret(self, form: str) -> float:
        """How much longer than the better form this one takes."""
        return (self.latent if form == "latent" else self.head) / min(self.latent, self.head) - 1


@dataclass(frozen=True)
class Setting:
    """What cases have in common."""

    isa: str
    format: str
    query: str
    repeats: int

    def measure(self, geometry: str, new: int, context: int) -> Case:
        """Median milliseconds of both forms for one chunk, and the form the cost model takes."""
        heads, latent, rope, nope, value = GEOMETRIES[geometry]
        layout = CacheLayout(mla_row(self.format, kv_lora_rank=latent, qk_rope_head_dim=rope), 1)
        pages = layout.pages_for(context)
        cache = LatentCache(layout, pages)
        tokens = torch.arange(pages * layout.page_tokens)
        cache.layer(0).write(
            tokens, {"latent": torch.randn(len(tokens), latent), "rope": torch.randn(len(tokens), rope)}
        )
        batch = Batch.build(query_lens=[new], context_lens=[context], pages=[list(range(pages))], page_tokens=64)
        dtype = getattr(torch, self.query)
        weight = (torch.randn(heads * (nope + value), latent) * latent**-0.5).to(dtype)
        up = UpProjection.from_kv_b_proj(weight, num_heads=heads, qk_nope_head_dim=nope)
        query = torch.randn(new, heads, nope + rope).to(dtype)
        times = self._times(query, cache, batch, up)
        request = request_for(query, cache.layer(0), batch, up=up)
        [chosen] = plan_attend(request, batch, backend=f"native:{self.isa}").forms
        return Case(geometry, new, context, **{form: _median_ms(spent) for form, spent in times.items()}, chosen=chosen)

    def _times(self, query: Tensor, cache: LatentCache, batch: Batch, up: UpProjection) -> dict[str, list[float]]:
        times: dict[str, list[float]] = {"latent": [], "head": []}
        layer, backend = cache.layer(0), f"native:{self.isa}"
        clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
        plans = {}
        for form in times:
            request = request_for(query, layer, batch, up=up, form=form)  # type: ignore[arg-type]
            plans[form] = plan_attend(request, batch, backend=backend)
        for _ in range(self.repeats + 1):
            for form, spent in times.items():
                begin = clock()
                attend_planned(query, layer, batch, plan=plans[form], scale=0.07, up=up)
                spent.append(clock() - begin)
            if _is_enough(times):
                break
        return {form: spent[1:] or spent for form, spent in times.items()}


def _is_enough(times: dict[str, list[float]]) -> bool:
    """Whether which form is better needs no further turn. The first turn warms up, unless it takes long."""
    turns, last = len(times["latent"]), [spent[-1] for spent in times.values()]
    if turns == 1 and sum(last) < LONG_SECONDS:
        return False
    return max(last) > CLEAR * min(last) or sum(map(sum, times.values())) > ENOUGH_SECONDS


def _median_ms(seconds: list[float]) -> float:
    return round(statistics.median(seconds) * 1e3, 3)


def summary(cases: list[Case]) -> dict[str, float]:
    """Shares of the cases within a tenth of the better form, and the largest regret, of both ways to choose."""
    chosen = [case.regret(case.chosen) for case in cases]
    constant = [case.regret("head" if case.new >= THRESHOLD else "latent") for case in cases]
    return {
        "within": round(sum(regret <= WITHIN for regret in chosen) / len(cases), 3),
        "worst": round(max(chosen), 3),
        "threshold_within": round(sum(regret <= WITHIN for regret in constant) / len(cases), 3),
        "threshold_worst": round(max(constant), 3),
    }


def run(setting: Setting) -> list[Case]:
    """All cases of one setting, printed as they come."""
    print(f"\n{setting.isa}, {setting.format}, {setting.query} queries")
    print(f"{'geometry':14}{'new':>6}{'context':>9}{'latent ms':>11}{'head ms':>10}  {'chosen':8}{'regret':>8}")
    cases = []
    for geometry in GEOMETRIES:
        for context in CONTEXTS:
            for new in (count for count in NEW if count <= context):
                case = setting.measure(geometry, new, context)
                cases.append(case)
                print(
                    f"{geometry:14}{new:6}{context:9}{case.latent:11.2f}{case.head:10.2f}  "
                    f"{case.chosen:8}{case.regret(case.chosen):8.0%}"
                )
    found = summary(cases)
    print(
        f"within 10 % of the better form: cost model {found['within']:.0%}, threshold {found['threshold_within']:.0%}; "
        f"worst {found['worst']:.0%}, {found['threshold_worst']:.0%}",
        flush=True,
    )
    return cases


def record(path: Path, setting: Setting, threads: int, cases: list[Case]) -> None:
    """Put the cases into the record at `path`, [geometry, new, context, latent ms, head ms, chosen] each."""
    runs: list[dict[str, Any]] = json.loads(path.read_text())["runs"] if path.exists() else []
    named = {"isa": setting.isa, "format": setting.format, "query": setting.query}
    runs = [one for one in runs if {key: one[key] for key in named} != named]
    rows = [[case.geometry, case.new, case.context, case.latent, case.head, case.chosen] for case in cases]
    runs.append({**named, "threads": threads, **summary(cases), "cases": rows})
    runs.sort(key=lambda one: (one["isa"], one["format"], one["query"]))
    lines = ",\n".join(json.dumps(one) for one in runs)
    path.write_text(f'{{"runs": [\n{lines}\n]}}\n')


def main() -> None:
    """Measure, print and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--isa", default=None)
    parser.add_argument("--formats", default="bf16")
    parser.add_argument("--query", choices=("float32", "bfloat16"), default="bfloat16")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    for format in arguments.formats.split(","):
        setting = Setting(find_isa(arguments.isa).name, format, arguments.query, arguments.repeats)
        cases = run(setting)
        if arguments.json:
            record(arguments.json, setting, arguments.threads, cases)


if __name__ == "__main__":
    main()
