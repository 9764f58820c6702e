"""`latentkv bench linear`, run from the checkout: `python benchmarks/bench_linear.py --help`."""

from __future__ import annotations

from latentkv.cli.bench_kernels import linear

if __name__ == "__main__":
    linear()
