"""How near linear maps come to the machine's ceilings, for every weight format and number of rows; torch beside them.

Prints a table; the last line is JSON. One row of x is bound by the memory: its weights are beyond the caches, and
the share is of the read rate. Many rows are bound by the multipliers: the share is of the fp32 multiply-add rate, which
int8 dot products may pass. Measurements take turns with the ceilings; `best` is the fastest of all: on a shared
machine it tells the kernel, while the median tells the machine.

    python benchmarks/bench_linear.py [--isa avx2] [--threads 2] [--repeats 7] [--only int4] [--threads 1 --cpu-time]
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from ceilings import Ceilings

from latentkv.backends.isa import find_isa
from latentkv.backends.kernels import Kernels, native_kernels
from latentkv.ops.linear import Projection, Weight
from latentkv.ops.quantized import GroupedWeight

# Streams: many weights of this shape, together beyond the caches. Tiles: one.
STREAM_SHAPE, STREAM_BYTES = (4096, 4096), 192 * 2**20
TILE_SHAPE = (2048, 2048)
STREAM_ROWS, TILE_ROWS = (1, 2, 4), (16, 128, 1024)
GROUP = 32


@dataclass
class Case:
    """One thing to measure: the operations and the bytes of weights that it takes at least."""

    name: str
    call: Callable[[], object]
    flops: float
    read_bytes: float
    times: list[float] = field(default_factory=list)

    def measure(self, clock: Callable[[], float]) -> None:
        """Run once and keep the time."""
        start = clock()
        self.call()
        self.times.append(clock() - start)


def random_weight(format: str, shape: tuple[int, int]) -> Weight:
    """Any numbers: only their size in memory matters."""
    if format in ("bf16", "f32"):
        return torch.randn(shape, dtype=torch.bfloat16 if format == "bf16" else torch.float32)
    lowest, highest = (-127, 128) if format == "int8" else (0, 16)
    codes = torch.randint(lowest, highest, shape, dtype=torch.int16)
    scales = torch.rand(shape[0], shape[1] // GROUP).half() * 0.01
    return GroupedWeight.pack(codes, scales, scales if format == "int4" else None, format=format)


def bytes_of(weight: Weight) -> int:
    """What has to be read for one use."""
    return weight.size_bytes if isinstance(weight, GroupedWeight) else weight.numel() * weight.element_size()


def stream_cases(kernels: Kernels, label: str, format: str) -> list[Case]:
    """A few rows against weights that no cache holds."""
    first = random_weight(format, STREAM_SHAPE)
    count = -(-STREAM_BYTES // bytes_of(first))
    projections = [Projection(first), *(Projection(_copy(first)) for _ in range(count - 1))]
    outputs, inputs = STREAM_SHAPE
    found = []
    for rows in STREAM_ROWS:
        x = torch.randn(rows, inputs)

        def call(x: torch.Tensor = x) -> None:
            for projection in projections:
                kernels.linear_stack(x, (projection,))

        flops = 2.0 * rows * outputs * inputs * count
        found.append(Case(f"{label} M={rows}", call, flops, bytes_of(first) * count))
    return found


def tile_cases(kernels: Kernels, label: str, format: str) -> list[Case]:
    """Many rows against one weight."""
    projection = Projection(random_weight(format, TILE_SHAPE))
    outputs, inputs = TILE_SHAPE
    found = []
    for rows in TILE_ROWS:
        x = torch.randn(rows, inputs)

        def call(x: torch.Tensor = x) -> None:
            kernels.linear_stack(x, (projection,))

        found.append(Case(f"{label} M={rows}", call, 2.0 * rows * outputs * inputs, bytes_of(projection.weight)))
    return found


def torch_cases(dtype: torch.dtype) -> list[Case]:
    """The same in torch."""
    name = str(dtype).removeprefix("torch.")
    weight = torch.randn(TILE_SHAPE, dtype=dtype)
    found = []
    for rows in (1, *TILE_ROWS):
        x = torch.randn(rows, TILE_SHAPE[1], dtype=dtype)

        def call(x: torch.Tensor = x) -> object:
            return torch.nn.functional.linear(x, weight)

        flops = 2.0 * rows * weight.numel()
        found.append(Case(f"torch {name} M={rows}", call, flops, weight.numel() * weight.element_size()))
    return found


def _copy(weight: Weight) -> Weight:
    if not isinstance(weight, GroupedWeight):
        return weight.clone()
    minima = None if weight.minima is None else weight.minima.clone()
    return GroupedWeight(
        weight.format, weight.codes.clone(), weight.scales.clone(), minima, weight.shape, weight.group, weight.zero
    )


def cases(isa: str | None, only: str) -> list[Case]:
    """Everything in the table."""
    rounding, exact = native_kernels(isa), native_kernels(isa, integer=False)
    labels = [("bf16", "bf16", exact), ("f32", "f32", exact)]
    for format in ("int8", "int4"):
        labels += [(f"{format} rounded x", format, rounding), (f"{format} exact x", format, exact)]
    found: list[Case] = []
    for label, format, kernels in labels:
        if only in label:
            found += stream_cases(kernels, label, format) + tile_cases(kernels, label, format)
    if only in "torch":
        found += torch_cases(torch.bfloat16) + torch_cases(torch.float32)
    return found


def report(found: list[Case], ceiling: Ceilings) -> list[dict[str, object]]:
    """The table, and its rows."""
    rows: list[dict[str, object]] = []
    print(f"{'case':28} {'best ms':>9} {'median':>9} {'GFLOP/s':>9} {'of FMA':>7} {'GB/s':>7} {'of read':>8}")
    for case in found:
        best, median = min(case.times), statistics.median(case.times)
        gflops, gbs = case.flops / best / 1e9, case.read_bytes / best / 1e9
        row = {
            "case": case.name,
            "best_ms": round(best * 1e3, 3),
            "median_ms": round(median * 1e3, 3),
            "gflops": round(gflops, 1),
            "share_of_fma": round(gflops / ceiling.gflops, 3),
            "read_gbs": round(gbs, 2),
            "share_of_read": round(gbs / ceiling.read_gbs, 3),
        }
        rows.append(row)
        print(
            f"{case.name:28} {row['best_ms']:9} {row['median_ms']:9} {row['gflops']:9} {row['share_of_fma']:7.0%} "
            f"{row['read_gbs']:7} {row['share_of_read']:8.0%}"
        )
    return rows


def main() -> None:
    """Measure, print, and end with one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--isa", help="instruction set; default: the best")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--only", default="", help="labels that hold this: bf16, f32, int8, int4, torch")
    parser.add_argument("--cpu-time", action="store_true", help="one thread's own time, on a machine that others share")
    options = parser.parse_args()
    clock = time.thread_time if options.cpu_time else time.perf_counter
    torch.set_num_threads(options.threads)
    isa = find_isa(options.isa)
    found, ceiling = cases(options.isa, options.only), Ceilings(isa, options.threads, clock)
    for _ in range(options.repeats + 1):
        for case in found:
            ceiling.sample()
            case.measure(clock)
    for case in found:
        case.times.pop(0)  # the first touches the memory
    rows = report(found, ceiling)
    best = {"gflops": round(ceiling.gflops, 1), "read_gbs": round(ceiling.read_gbs, 2)}
    print("ceilings:", best)
    print(json.dumps({"isa": isa.name, "threads": options.threads, "ceilings": best, "cases": rows}))


if __name__ == "__main__":
    main()
