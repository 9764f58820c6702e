"""New rows of codes, written natively: the reference's bytes, whatever the numbers."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from latentkv.backends.isa import available_isas
from latentkv.backends.kernels import native_kernels
from latentkv.cache.latent import LatentCache
from latentkv.cache.layout import FORMATS, CacheLayout, mla_row
from latentkv.ops.write_latent import write_latent
from support.compare import assert_close
from support.hostile import spoil_rows

CODED = ("fp8", "int8", "int6", "int4")
TOKENS, ROPE = 40, 6

every_isa = pytest.mark.parametrize("isa", available_isas())


def layer_pair(format: str, latent: int, *, rotated: bool) -> tuple[LatentCache, LatentCache]:
    """Two caches of the same bytes: one to write natively, one for the reference."""
    row = mla_row(replace(FORMATS[format], rotated=rotated), kv_lora_rank=latent, qk_rope_head_dim=ROPE)
    caches = LatentCache(CacheLayout(row, 1, 16), 4), LatentCache(CacheLayout(row, 1, 16), 4)
    for cache in caches:
        cache.storage.fill_(255)
    return caches


def options(norm: Tensor | None) -> dict[str, object]:
    angles = torch.linspace(0, 3, TOKENS * ROPE // 2).view(TOKENS, -1)
    return {
        "latent_norm": norm,
        "latent_eps": 1e-6,
        "rope_norm": None,
        "rope_eps": 1e-6,
        "angles": (angles.cos(), angles.sin()),
        "groups": 1,
        "interleaved": False,
    }


def hostile(latent: int, dtype: torch.dtype) -> Tensor:
    """Ordinary rows, and rows of zeros, of huge, tiny and equal numbers, of infinity and of NaN."""
    kv = torch.randn(TOKENS, latent + ROPE, generator=torch.Generator().manual_seed(latent))
    spoil_rows(kv, middle=latent // 2)
    kv[8, latent - 1] = 1e4
    kv[9] = torch.linspace(-1, 1, latent + ROPE)
    return kv.to(dtype)


@every_isa
@pytest.mark.parametrize("rotated", [False, True])
@pytest.mark.parametrize("latent", [512, 192, 130, 7])
@pytest.mark.parametrize("format", CODED)
def test_without_a_norm_every_byte_is_the_references(format: str, latent: int, rotated: bool, isa: str) -> None:
    ours, theirs = layer_pair(format, latent, rotated=rotated)
    kernels, slots = native_kernels(isa), torch.randperm(64)[:TOKENS]
    kv = hostile(latent, torch.float32)
    kernels.write_latent(ours.layer(0), slots, kv, **options(None))
    write_latent(theirs.layer(0), slots, kv, **options(None))
    assert not kernels.fallbacks
    # A scale that is NaN may have any bits of a NaN.
    finite = torch.ones(64, dtype=torch.bool)
    finite[slots[[5, 6]]] = False
    different = (ours.storage != theirs.storage).view(64, -1).any(dim=1)
    assert not different[finite].any(), f"slots {(different & finite).nonzero().flatten().tolist()} of {slots.tolist()}"
    for name, read in ours.layer(0).read(slots).items():
        assert_close(read, theirs.layer(0).read(slots)[name], tolerance="exact")


@every_isa
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("format", CODED)
def test_with_a_norm_codes_differ_where_its_rounding_does(format: str, dtype: torch.dtype, isa: str) -> None:
    ours, theirs = layer_pair(format, 512, rotated=FORMATS[format].rotated)
    kernels, slots = native_kernels(isa), torch.arange(TOKENS)
    kv, norm = hostile(512, dtype)[10:].repeat(2, 1)[:TOKENS], torch.rand(512) + 0.5
    kernels.write_latent(ours.layer(0), slots, kv, **options(norm))
    write_latent(theirs.layer(0), slots, kv, **options(norm))
    assert not kernels.fallbacks
    changed = (ours.storage != theirs.storage).double().mean().item()
    assert changed < 2e-3, f"{changed:.2%} of the bytes"


@every_isa
def test_every_eighth_of_a_step_becomes_torchs_e4m3(isa: str) -> None:
    """Ties, subnormals and both ends: groups whose scale is 1."""
    values = (torch.arange(0x7F0) << 17).to(torch.int32)  # e4m3's steps in eighths, as bits above 2**-10
    numbers = (values + (117 << 23)).view(torch.float32)
    numbers = torch.cat([numbers, -numbers])
    numbers = numbers[numbers.abs() <= 448]
    rows = torch.nn.functional.pad(numbers, (0, -len(numbers) % 127)).view(-1, 127)
    latents = torch.cat([rows, torch.full((len(rows), 1), 448.0)], dim=1)
    row = mla_row("fp8", kv_lora_rank=128, qk_rope_head_dim=0)
    cache = LatentCache(CacheLayout(row, 1, 256), 1)
    still = {"angles": (torch.ones(len(latents), 0), torch.zeros(len(latents), 0))}
    kernels = native_kernels(isa)
    kernels.write_latent(cache.layer(0), torch.arange(len(latents)), latents, **(options(None) | still))
    assert not kernels.fallbacks
    codes = cache.storage[0, 0, : len(latents), :128].view(torch.float8_e4m3fn)
    assert torch.equal(codes.float(), latents.to(torch.float8_e4m3fn).float())
