"""`latentkv bench attention`, run from the checkout: `python benchmarks/bench_attention.py --help`."""

from __future__ import annotations

from latentkv.cli.bench_kernels import attention

if __name__ == "__main__":
    attention()
