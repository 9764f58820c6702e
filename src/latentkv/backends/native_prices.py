"""What operations of each form take on the native kernels: the measured prices by which a form is chosen (cost.py).

`python benchmarks/fit_prices.py` makes them from the record of benchmarks/bench_forms.py, which runs both forms over
chunks of three models: on AVX2, AVX-512 with VNNI and AMX, with bfloat16 queries, for each cache format.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from latentkv.backends.base import Request
from latentkv.backends.cost import Prices

if TYPE_CHECKING:
    from latentkv._native import Isa

# By what computes and the cache's format: projection, expansion, latent.
PRICES = {
    "vectors of 8": {
        "f32": Prices(1.6, 1.1, 0.8),
        "bf16": Prices(1.4, 0.9, 0.9),
        "fp8": Prices(1.6, 0.9, 0.6),
        "int8": Prices(1.6, 0.9, 0.6),
        "int6": Prices(1.4, 1.1, 0.7),
        "int4": Prices(1.4, 1.1, 0.7),
    },
    "vectors of 16": {
        "f32": Prices(1.3, 1.3, 0.85),
        "bf16": Prices(1.3, 1.3, 0.85),
        "fp8": Prices(1.3, 1.3, 0.85),
        "int8": Prices(1.3, 1.3, 0.85),
        "int6": Prices(1.3, 1.3, 0.85),
        "int4": Prices(1.3, 1.3, 0.85),
    },
    "tiles": {
        "bf16": Prices(2.8, 0.4, 0.65),
        "fp8": Prices(1.3, 1.3, 0.4),
        "int8": Prices(1.3, 1.3, 0.4),
        "int6": Prices(1.3, 1.3, 0.4),
        "int4": Prices(1.3, 1.3, 0.4),
    },
    # Latents of bf16 on tiles, but heads whose widths are not whole tiles.
    "tiles and vectors": {"bf16": Prices(1.3, 1.3, 0.4)},
}
TILE_ISA = "amx"
WIDE_ISAS = ("avx512", "avx512vnni", "amx")
TILE_COLUMNS = 32
# Latents that matrix tiles multiply, and of how many columns at a time.
TILE_LATENTS = {"bf16": 32, "fp8": 64, "int8": 64, "int6": 64, "int4": 64}


def native_prices(request: Request, isa: Isa) -> Prices:
    """The prices of a request for a choice of form on this instruction set.

    Codes that may not be multiplied as whole numbers, and float16, count as float32, which they become.
    """
    way = _way(request, isa)
    by_format = PRICES[way]
    widened = request.format not in by_format or (request.format != "bf16" and not request.integer)
    return by_format["f32" if widened else request.format]


def _way(request: Request, isa: Isa) -> str:
    """Which part of PRICES is about a request's kernels."""
    vectors = "vectors of 16" if isa.name in WIDE_ISAS else "vectors of 8"
    columns = TILE_LATENTS.get(request.format) if isa.name == TILE_ISA else None
    if columns is None or request.kv_lora_rank % columns or request.qk_rope_head_dim % TILE_COLUMNS:
        return vectors
    if request.format != "bf16":
        return "tiles" if request.integer else vectors
    head = (request.qk_nope_head_dim, request.qk_rope_head_dim // request.rope_groups, request.v_head_dim)
    return "tiles and vectors" if any(width % TILE_COLUMNS for width in head) else "tiles"
