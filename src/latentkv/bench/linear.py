"""Linear maps near the machine's ceilings, for every weight format and number of rows; torch beside them.

One row of x is bound by the memory: its weights are beyond the caches, and the share of reading counts. Many rows are
bound by the multipliers: the share is of the fp32 multiply-add rate, which int8 dot products may pass.
"""

from __future__ import annotations

import torch

from latentkv.backends.kernels import Kernels, native_kernels
from latentkv.bench.kernel_cases import Case, Options
from latentkv.ops.linear import Projection, Weight
from latentkv.ops.quantized import GroupedWeight

# Streams: many weights of this shape, together beyond the caches. Tiles: one.
STREAM_SHAPE, STREAM_BYTES = (4096, 4096), 192 * 2**20
TILE_SHAPE = (2048, 2048)
STREAM_ROWS, TILE_ROWS = (1, 2, 4), (16, 128, 1024)
GROUP = 32


def random_weight(format: str, shape: tuple[int, int]) -> Weight:
    """Any numbers: only their size in memory matters."""
    if format in ("bf16", "f32"):
        return torch.randn(shape, dtype=torch.bfloat16 if format == "bf16" else torch.float32)
    scales = torch.rand(shape[0], shape[1] // GROUP).half() * 0.01
    if format == "int8":
        return GroupedWeight.pack(torch.randint(-127, 128, shape, dtype=torch.int16), scales, format="int8")
    return GroupedWeight.pack(torch.randint(0, 16, shape, dtype=torch.int16), scales, scales, format="int4")


def bytes_of(weight: Weight) -> int:
    """What has to be read for one use."""
    return weight.size_bytes if isinstance(weight, GroupedWeight) else weight.numel() * weight.element_size()


def stream_cases(kernels: Kernels, label: str, format: str, threads: int) -> list[Case]:
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
        found.append(Case(f"{label} M={rows}", call, threads, flops, bytes_of(first) * count))
    return found


def tile_cases(kernels: Kernels, label: str, format: str, threads: int) -> list[Case]:
    """Many rows against one weight."""
    projection = Projection(random_weight(format, TILE_SHAPE))
    outputs, inputs = TILE_SHAPE
    found = []
    for rows in TILE_ROWS:
        x = torch.randn(rows, inputs)

        def call(x: torch.Tensor = x) -> None:
            kernels.linear_stack(x, (projection,))

        found.append(
            Case(f"{label} M={rows}", call, threads, 2.0 * rows * outputs * inputs, bytes_of(projection.weight))
        )
    return found


def torch_cases(dtype: torch.dtype, threads: int) -> list[Case]:
    """The same in torch."""
    name = str(dtype).removeprefix("torch.")
    weight = torch.randn(TILE_SHAPE, dtype=dtype)
    found = []
    for rows in (1, *TILE_ROWS):
        x = torch.randn(rows, TILE_SHAPE[1], dtype=dtype)

        def call(x: torch.Tensor = x) -> object:
            return torch.nn.functional.linear(x, weight)

        flops = 2.0 * rows * weight.numel()
        found.append(Case(f"torch {name} M={rows}", call, threads, flops, weight.numel() * weight.element_size()))
    return found


def _copy(weight: Weight) -> Weight:
    if not isinstance(weight, GroupedWeight):
        return weight.clone()
    minima = None if weight.minima is None else weight.minima.clone()
    return GroupedWeight(
        weight.format, weight.codes.clone(), weight.scales.clone(), minima, weight.shape, weight.group, weight.zero
    )


def linear_cases(options: Options) -> list[Case]:
    """Those whose label (bf16, f32, "int8 exact x", torch ...) holds `options.only`."""
    rounding, exact = native_kernels(options.isa), native_kernels(options.isa, integer=False)
    narrow = native_kernels(options.isa, integer=False, narrow=True)
    labels = [("bf16", "bf16", exact), ("bf16 bf16 x", "bf16", narrow), ("f32", "f32", exact)]
    for format in ("int8", "int4"):
        labels += [(f"{format} rounded x", format, rounding), (f"{format} exact x", format, exact)]
    found: list[Case] = []
    for label, format, kernels in labels:
        if options.only in label:
            found += stream_cases(kernels, label, format, options.threads)
            found += tile_cases(kernels, label, format, options.threads)
    if options.only in "torch":
        found += torch_cases(torch.bfloat16, options.threads) + torch_cases(torch.float32, options.threads)
    return found
