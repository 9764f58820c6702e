"""Prices by which a form is chosen (backends/native_prices.py), from what bench_forms.py measured.

Tried are all prices in steps of a seventh; best are those whose chosen forms together lose least against the better
ones. Where that leaves some open, a fit of the times decides. One line for each run of the record.

    python benchmarks/fit_prices.py benchmarks/results/forms.json
"""

from __future__ import annotations

import json
import sys
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from bench_forms import GEOMETRIES, WITHIN

STEPS = [round(0.3 * 1.15**step, 2) for step in range(22)]
Numbers = np.ndarray[Any, np.dtype[np.float64]]


def operations(case: list[Any]) -> list[float]:
    """Absorption, latent pairs, expansion, head pairs: as backends/cost.py counts them."""
    heads, latent, rope, nope, value = GEOMETRIES[case[0]]
    new, context = case[1], case[2]
    pairs = new * context - new * (new - 1) // 2
    per_head = (
        new * (nope + value) * latent,
        pairs * (2 * latent + rope),
        context * (nope + value) * latent,
        pairs * (nope + rope + value),
    )
    return [2.0 * heads * count for count in per_head]


def fit(cases: list[list[Any]]) -> tuple[tuple[float, float, float], float]:
    """(projection, expansion, latent), and the share of cases within 10 % of the better form."""
    counts = np.array([operations(case) for case in cases])
    latent, head = (np.array([case[index] for case in cases]) for index in (3, 4))
    better = np.minimum(latent, head)
    by_time = _fit_times(counts, latent, head)

    def loss(prices: tuple[float, float, float]) -> tuple[float, float]:
        projection, expansion, per_latent = prices
        takes_latent = counts[:, 0] * projection + counts[:, 1] * per_latent <= counts[:, 2] * expansion + counts[:, 3]
        regret = np.where(takes_latent, latent, head) / better
        distance = float(np.abs(np.log(np.array(prices) / by_time)).sum())
        return round(float(np.log(regret).sum()), 2) + 0.01 * distance, float((regret - 1 <= WITHIN).mean())

    best = min(product(STEPS, repeat=3), key=lambda prices: loss(prices)[0])
    return best, loss(best)[1]


def _fit_times(counts: Numbers, latent: Numbers, head: Numbers) -> Numbers:
    """Relative errors' least squares."""
    rates = []
    for pair, times in ((counts[:, :2], latent), (counts[:, 2:], head)):
        rates.append(np.linalg.lstsq(pair / times[:, None], np.ones(len(times)), rcond=None)[0])
    (absorb, per_latent), (expand, per_head) = rates
    return np.maximum(np.array([absorb, expand, per_latent]) / per_head, 0.1)


def main() -> None:
    """Fit every run of a record."""
    for run in json.loads(Path(sys.argv[1]).read_text())["runs"]:
        (projection, expansion, latent), within = fit(run["cases"])
        print(
            f"{run['isa']:11} {run['format']:5} {run['query']:9} projection {projection:.2f} expansion {expansion:.2f} "
            f"latent {latent:.2f}: {within:.0%} within 10 %"
        )


if __name__ == "__main__":
    main()
