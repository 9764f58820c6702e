"""Native kernels against float64, on every instruction set this machine has."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from latentkv.backends.isa import available_isas
from latentkv.backends.kernels import Kernels, choose_kernels, native_kernels, portable_kernels
from latentkv.cache.codec import encode_rows
from latentkv.cache.latent import LatentCache, LayerCache
from latentkv.cache.layout import CacheLayout, mla_row
from latentkv.errors import OptionError, ShapeError
from support.compare import Tolerance, assert_close

FLOATS = (torch.float32, torch.bfloat16)
NAMES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}
# So many rows that the roundings of the narrowest widths average out, as the cosine's tolerance supposes.
ROWS = 40
WIDTHS = (1, 3, 4, 5, 8, 15, 16, 17, 31, 33, 64, 576, 577)
EPS = 1e-6

every_kernels = pytest.mark.parametrize("name", ["portable", *(f"native:{isa}" for isa in available_isas())])
every_isa = pytest.mark.parametrize("isa", available_isas())


def strided(rows: int, n: int, dtype: torch.dtype, *, seed: int = 0) -> Tensor:
    """Unit normal [rows, n] inside a wider array of NaN."""
    generator = torch.Generator().manual_seed(seed)
    wide = torch.full((rows, n + 5), torch.nan, dtype=dtype)
    view = wide[:, 3 : 3 + n]
    view.copy_(torch.randn(rows, n, generator=generator))
    return view


def exact_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    wide = x.double()
    return wide / (wide.square().mean(dim=-1, keepdim=True) + eps).sqrt() * weight.double()


@every_kernels
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("weight_dtype", FLOATS)
def test_rms_norm_is_exact_to_its_dtype(name: str, dtype: torch.dtype, weight_dtype: torch.dtype) -> None:
    kernels = choose_kernels(name)
    for n in WIDTHS:
        x, weight = strided(ROWS, n, dtype), strided(1, n, weight_dtype, seed=1)[0]
        got = kernels.rms_norm(x, weight, eps=EPS)
        assert_close(got, exact_norm(x, weight, EPS), tolerance=NAMES[dtype])
    assert not kernels.fallbacks


@every_kernels
@pytest.mark.parametrize("shape", [(0, 8), (5, 0), (2, 3, 24), (2, 0, 8), (1, 1, 7), (24,)])
def test_rms_norm_takes_any_leading_dimensions(name: str, shape: tuple[int, ...]) -> None:
    x, weight = torch.randn(shape), torch.randn(shape[-1])
    kernels = choose_kernels(name)
    assert_close(kernels.rms_norm(x, weight, eps=EPS), exact_norm(x, weight, EPS), tolerance="float32")
    assert not kernels.fallbacks


@every_kernels
def test_rms_norm_of_head_slices_and_repeated_rows(name: str) -> None:
    kernels, weight = choose_kernels(name), torch.randn(16)
    fused = torch.randn(6, 4, 40)
    for x in (fused[..., 8:24], fused[:, 1, :16], fused[0, 0, :16].expand(5, 16), fused.transpose(0, 1)[..., :16]):
        assert_close(kernels.rms_norm(x, weight, eps=EPS), exact_norm(x, weight, EPS), tolerance="float32")


@every_kernels
def test_rms_norm_keeps_denormals(name: str) -> None:
    x = torch.full((1, 20), 3e-40)
    got = choose_kernels(name).rms_norm(x, torch.ones(20), eps=EPS)
    assert_close(got, exact_norm(x, torch.ones(20), EPS), tolerance=Tolerance(torch.float32, relative=1e-6))


@every_kernels
@pytest.mark.parametrize("dtype", FLOATS)
def test_rms_norm_passes_infinity_and_nan_through_their_own_row_only(name: str, dtype: torch.dtype) -> None:
    x = strided(4, 37, dtype).clone()
    x[1, 36], x[2, 5] = torch.inf, torch.nan
    got = choose_kernels(name).rms_norm(x, torch.ones(37, dtype=dtype), eps=EPS)
    assert_close(got, exact_norm(x, torch.ones(37), EPS), tolerance=NAMES[dtype])


@every_isa
@pytest.mark.parametrize("dtype", FLOATS)
def test_two_threads_compute_what_one_does(isa: str, dtype: torch.dtype, two_threads: None) -> None:
    x, weight = torch.randn(301, 577).to(dtype), torch.randn(577)
    kernels = native_kernels(isa)
    got = kernels.rms_norm(x, weight, eps=EPS)
    torch.set_num_threads(1)
    assert_close(got, kernels.rms_norm(x, weight, eps=EPS), tolerance="exact")


def test_instruction_sets_of_one_width_give_the_same_bits_and_others_do_not() -> None:
    """The order of a sum follows the width, so its rounding proves which kernel ran."""
    isas = available_isas()
    if "avx2w16" not in isas:
        pytest.skip("needs AVX2")
    x, weight = torch.randn(64, 1003), torch.ones(1003)
    got = {isa: native_kernels(isa).rms_norm(x, weight, eps=EPS) for isa in isas}
    assert not torch.equal(got["avx2"], got["baseline"])
    assert not torch.equal(got["avx2"], got["avx2w16"])
    if "avx512" in isas:
        assert_close(got["avx512"], got["avx2w16"], tolerance="exact")


def poisoned_layer(format: str) -> LayerCache:
    cache = LatentCache(CacheLayout(mla_row(format, kv_lora_rank=37, qk_rope_head_dim=6), 2, 4), 5)
    cache.storage.fill_(torch.nan)
    return cache.layer(1)


@every_kernels
@pytest.mark.parametrize("format", ["f32", "bf16", "f16"])
@pytest.mark.parametrize("dtypes", [(a, b) for a in FLOATS for b in FLOATS])
def test_write_rows_stores_rounded_parts_and_touches_nothing_else(
    name: str, format: str, dtypes: tuple[torch.dtype, torch.dtype]
) -> None:
    layer, kernels = poisoned_layer(format), choose_kernels(name)
    parts = {"rope": strided(4, 6, dtypes[1], seed=1), "latent": strided(4, 37, dtypes[0])}
    slots = torch.tensor([19, 0, 7, 3])
    kernels.write_rows(layer, slots, parts)
    expected = torch.full((20, 43), torch.nan, dtype=layer.rows.dtype)
    expected[slots] = torch.cat([parts["latent"].to(expected.dtype), parts["rope"].to(expected.dtype)], dim=1)
    assert_close(layer.rows.view(20, 43), expected, tolerance="exact")
    assert not kernels.fallbacks


@every_kernels
@pytest.mark.parametrize("format", ["fp8", "int8", "int6", "int4"])
def test_rows_of_codes_are_written_as_the_reference_writes_them(name: str, format: str) -> None:
    cache = LatentCache(CacheLayout(mla_row(format, kv_lora_rank=130, qk_rope_head_dim=6), 2, 4), 5)
    cache.storage.fill_(255)
    expected = cache.storage.clone()
    parts = {"rope": strided(4, 6, torch.float32, seed=1), "latent": strided(4, 130, torch.bfloat16)}
    slots = torch.tensor([19, 0, 7, 3])
    choose_kernels(name).write_rows(cache.layer(1), slots, parts)
    expected[1].view(20, -1)[slots] = encode_rows(cache.layout.row, parts)
    assert torch.equal(cache.storage, expected)


@every_isa
def test_rounding_to_bfloat16_is_torchs_for_every_upper_half(isa: str) -> None:
    upper = torch.arange(1 << 16, dtype=torch.int64) << 16
    lower = torch.tensor([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF])
    values = (upper[:, None] | lower).to(torch.int32).view(torch.float32).reshape(256, -1)
    cache = LatentCache(CacheLayout(mla_row("bf16", kv_lora_rank=values.shape[1], qk_rope_head_dim=0), 1, 256), 1)
    layer = cache.layer(0)
    native_kernels(isa).write_rows(layer, torch.arange(256), {"latent": values, "rope": values[:, :0]})
    expected = values.bfloat16()
    assert_close(layer.rows[0], expected, tolerance="exact")
    real = ~expected.isnan()
    assert torch.equal(layer.rows[0].view(torch.int16)[real], expected.view(torch.int16)[real])


@every_isa
def test_rounding_to_float16_is_torchs_at_every_step_and_half_step(isa: str) -> None:
    """Signs, subnormals, overflow to infinity and NaN included."""
    upper = torch.arange(1 << 16, dtype=torch.int64) << 16
    middle = torch.tensor([0, 1, 6, 7]) << 13
    lower = (middle[:, None] | torch.tensor([0, 1, 0xFFF, 0x1000, 0x1001, 0x1FFF])).flatten()
    values = (upper[:, None] | lower).to(torch.int32).view(torch.float32).reshape(256, -1)
    cache = LatentCache(CacheLayout(mla_row("f16", kv_lora_rank=values.shape[1], qk_rope_head_dim=0), 1, 256), 1)
    layer = cache.layer(0)
    native_kernels(isa).write_rows(layer, torch.arange(256), {"latent": values, "rope": values[:, :0]})
    expected = values.half()
    assert_close(layer.rows[0], expected, tolerance="exact")
    real = ~expected.isnan()
    assert torch.equal(layer.rows[0].view(torch.int16)[real], expected.view(torch.int16)[real])


@every_isa
def test_write_rows_with_two_threads(isa: str, two_threads: None) -> None:
    cache = LatentCache(CacheLayout(mla_row("bf16", kv_lora_rank=512, qk_rope_head_dim=64), 1), 5)
    parts = {"latent": torch.randn(300, 512), "rope": torch.randn(300, 64)}
    slots = torch.randperm(320)[:300]
    native_kernels(isa).write_rows(cache.layer(0), slots, parts)
    got = cache.layer(0).rows.view(320, 576)[slots]
    assert_close(got, torch.cat([*parts.values()], dim=1).bfloat16(), tolerance="exact")


@every_isa
@pytest.mark.parametrize("bad", [20, -1, 1 << 62])
def test_a_slot_outside_the_cache_leaves_it_untouched(isa: str, bad: int) -> None:
    layer = poisoned_layer("bf16")
    parts = {"latent": torch.zeros(2, 37), "rope": torch.zeros(2, 6)}
    with pytest.raises(IndexError, match=f"slots: expected 0 to 19, got {bad} at position 1"):
        native_kernels(isa).write_rows(layer, torch.tensor([0, bad]), parts)
    assert layer.rows.isnan().all()


@every_kernels
def test_no_rows_to_write(name: str) -> None:
    layer = poisoned_layer("f32")
    slots = torch.zeros(0, dtype=torch.int64)
    choose_kernels(name).write_rows(layer, slots, {"latent": torch.zeros(0, 37), "rope": torch.zeros(0, 6)})
    assert layer.rows.isnan().all()


@every_kernels
@pytest.mark.parametrize("parts", [{"latent": (2, 37)}, {"latent": (2, 6), "rope": (2, 37)}, {"latent": (2, 43)}])
def test_wrong_parts_are_named(name: str, parts: dict[str, tuple[int, int]]) -> None:
    layer = poisoned_layer("f32")
    with pytest.raises(ShapeError, match=r"row parts|latent"):
        choose_kernels(name).write_rows(layer, torch.arange(2), {key: torch.zeros(parts[key]) for key in parts})


def fallen_back(kernels: Kernels) -> list[str]:
    return sorted(kernels.fallbacks.elements())


def test_what_kernels_cannot_take_goes_to_the_reference_and_is_counted() -> None:
    kernels, weight = choose_kernels("native"), torch.randn(8)
    half, backward, leaf = torch.randn(2, 8).half(), torch.randn(8, 2).T, torch.randn(2, 8, requires_grad=True)
    for x in (half, backward, leaf):
        assert_close(
            kernels.rms_norm(x, weight, eps=EPS), portable_kernels().rms_norm(x, weight, eps=EPS), tolerance="exact"
        )
    assert kernels.rms_norm(leaf, weight, eps=EPS).requires_grad
    assert fallen_back(kernels) == [
        "rms_norm: gradients are wanted",
        "rms_norm: gradients are wanted",
        "rms_norm: x: last dimension is strided",
        "rms_norm: x: no native kernel for this dtype",
    ]


def test_fallbacks_of_writing_rows_are_counted_too() -> None:
    kernels, layer = choose_kernels("native"), poisoned_layer("f32")
    kernels.write_rows(layer, torch.arange(2), {"latent": torch.ones(2, 37).half(), "rope": torch.ones(2, 6)})
    assert layer.rows.view(20, 43)[:2].eq(1).all()
    assert fallen_back(kernels) == [
        "write_rows: part: no native kernel for this dtype",
    ]


def test_arrays_without_memory_go_to_the_reference() -> None:
    kernels, x = choose_kernels("native"), torch.empty(2, 8, device="meta")
    assert kernels.rms_norm(x, x[0], eps=EPS).is_meta
    assert fallen_back(kernels) == ["rms_norm: x: has no memory that can be read"]


def test_without_gradients_leaves_are_taken() -> None:
    kernels, leaf = choose_kernels("native"), torch.randn(2, 8, requires_grad=True)
    with torch.no_grad():
        kernels.rms_norm(leaf, torch.nn.Parameter(torch.ones(8)), eps=EPS)
    with torch.inference_mode():
        kernels.rms_norm(torch.randn(2, 8), torch.ones(8), eps=EPS)
    assert not kernels.fallbacks


@every_isa
def test_shapes_that_do_not_fit_are_refused(isa: str) -> None:
    kernels = native_kernels(isa)
    with pytest.raises(ShapeError, match="weight: expected 8, got 7"):
        kernels.rms_norm(torch.randn(2, 8), torch.ones(7), eps=EPS)
    parts = {"latent": torch.zeros(2, 37), "rope": torch.zeros(2, 6)}
    with pytest.raises(ShapeError, match="rows of a part: expected 3, got 2"):
        kernels.write_rows(poisoned_layer("f32"), torch.arange(3), parts)


def test_numpy_arrays_are_taken_too() -> None:
    from latentkv._native import isas

    x, weight = torch.randn(3, 20), torch.randn(20)
    out = torch.empty(3, 20)
    isas()[0].rms_norm(x.numpy(), weight.numpy(), EPS, out.numpy())
    assert_close(out, exact_norm(x, weight, EPS), tolerance="float32")


def test_kernels_by_name() -> None:
    assert choose_kernels().name == f"native:{available_isas()[0]}"
    assert choose_kernels("portable").name == "portable"
    assert choose_kernels("native:baseline").name == "native:baseline"
    with pytest.raises(OptionError, match="kernels: expected auto, portable, native or native:ISA, got 'fast'"):
        choose_kernels("fast")
    with pytest.raises(OptionError, match=r"one of .*baseline.*, got 'mmx'"):
        choose_kernels("native:mmx")


WITHOUT_EXTENSION = """
import sys
sys.modules["latentkv._native"] = None
from latentkv.backends.kernels import choose_kernels
from latentkv.errors import UnsupportedError
print(choose_kernels().name)
try:
    choose_kernels("native")
except UnsupportedError as error:
    print(error)
"""


def test_without_the_extension_auto_is_portable_and_native_says_why() -> None:
    done = subprocess.run([sys.executable, "-c", WITHOUT_EXTENSION], capture_output=True, text=True, check=True)
    name, reason = done.stdout.splitlines()
    assert name == "portable"
    assert "latentkv._native cannot be loaded" in reason


ONE_POOL = """
import os, torch
from latentkv.backends.kernels import choose_kernels
torch.set_num_threads(2)
x = torch.randn(2048, 512)
x.square()
before = len(os.listdir("/proc/self/task"))
choose_kernels("native").rms_norm(x, torch.ones(512), eps=1e-6)
print(before, len(os.listdir("/proc/self/task")))
"""


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="counts threads in /proc")
def test_kernels_use_torchs_threads_and_start_none_of_their_own() -> None:
    done = subprocess.run([sys.executable, "-c", ONE_POOL], capture_output=True, text=True, check=True)
    before, after = map(int, done.stdout.split())
    assert before == after > 1
