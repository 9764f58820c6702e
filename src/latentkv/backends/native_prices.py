"""What operations of each form take on the native kernels: the measured prices by which a form is chosen (cost.py).

Both forms were run over chunks of three models for each cache format on AVX2, AVX-512 with VNNI and AMX
(benchmarks/bench_forms.py); benchmarks/fit_prices.py finds the prices that choose best. Formats that the same prices
serve share a line.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from latentkv.backends.base import Request
from latentkv.backends.cost import Prices
from latentkv.backends.native_codes import CODE_FORMATS

if TYPE_CHECKING:
    from latentkv._native import Isa

# By what computes, and what of: projection, expansion, latent.
PRICES = {
    ("vectors of 8", "numbers"): Prices(1.5, 1.0, 0.8),
    ("vectors of 8", "codes"): Prices(1.5, 1.0, 0.7),
    ("vectors of 16", "numbers"): Prices(1.3, 1.3, 0.85),
    ("vectors of 16", "codes"): Prices(1.6, 1.0, 0.5),
    ("tiles", "bfloat16"): Prices(1.4, 0.4, 1.05),
    ("tiles", "float32"): Prices(1.1, 0.35, 0.5),
    # The head form is on vectors: over codes, and with heads whose widths are not whole tiles.
    ("tiles", "latents alone"): Prices(1.3, 1.3, 0.4),
}
TILE_ISA = "amx"
WIDE_ISAS = ("avx512", "avx512vnni", "amx")
TILE_COLUMNS = 32
# Latents that matrix tiles multiply, and of how many columns at a time.
TILE_LATENTS = {"bf16": 32, "fp8": 64, "int8": 64, "int6": 64, "int4": 64}


def native_prices(request: Request, isa: Isa) -> Prices:
    """The prices of a request for a choice of form on this instruction set.

    Codes that may not be multiplied as whole numbers count as the numbers they become.
    """
    codes = request.format in CODE_FORMATS.values()
    if isa.name == TILE_ISA and _on_tiles(request):
        return PRICES["tiles", "latents alone" if codes or not _heads_on_tiles(request) else request.query_dtype]
    lanes = "vectors of 16" if isa.name in WIDE_ISAS else "vectors of 8"
    return PRICES[lanes, "codes" if codes and request.integer else "numbers"]


def _on_tiles(request: Request) -> bool:
    columns = TILE_LATENTS.get(request.format)
    if columns is None or request.kv_lora_rank % columns or request.qk_rope_head_dim % TILE_COLUMNS:
        return False
    return request.integer or request.format != "int8"


def _heads_on_tiles(request: Request) -> bool:
    widths = (request.qk_nope_head_dim, request.qk_rope_head_dim // request.rope_groups, request.v_head_dim)
    return not any(width % TILE_COLUMNS for width in widths)
