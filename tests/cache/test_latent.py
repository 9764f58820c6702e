from __future__ import annotations

import pytest
import torch

from latentkv.cache.latent import LatentCache
from latentkv.cache.layout import FORMATS, CacheLayout, mla_row
from latentkv.errors import OptionError, ShapeError

SLOTS = torch.tensor([9, 0, 7])


def poisoned(format: str = "f32", *, latent: int = 6, rope: int = 2) -> LatentCache:
    cache = LatentCache(CacheLayout(mla_row(format, kv_lora_rank=latent, qk_rope_head_dim=rope), 2, 4), 3)
    cache.storage.fill_(float("nan"))
    return cache


def random_parts(latent: int = 6, rope: int = 2) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        "latent": torch.randn(3, latent, generator=generator),
        "rope": torch.randn(3, rope, generator=generator),
    }


@pytest.mark.parametrize(("latent", "rope"), [(6, 2), (6, 0), (0, 2)])
def test_rows_come_back_from_their_slots_and_nothing_else_is_written(latent: int, rope: int) -> None:
    cache = poisoned(latent=latent, rope=rope)
    parts = random_parts(latent, rope)
    cache.layer(1).write(SLOTS, parts)
    read = cache.layer(1).read(SLOTS)
    assert all(torch.equal(read[name], parts[name]) for name in ("latent", "rope"))
    untouched = torch.ones(12, dtype=torch.bool)
    untouched[SLOTS] = False
    assert cache.storage[1].view(12, -1)[untouched].isnan().all()
    assert cache.storage[0].isnan().all()


def test_bfloat16_rows_round_to_nearest_even() -> None:
    cache = poisoned("bf16", latent=3, rope=1)
    # 1 + 2**-8 lies halfway between 1 and 1 + 2**-7, and 1 + 3 * 2**-8 between the next two: ties go to even.
    parts = {"latent": torch.tensor([[1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-8 + 2**-20]]), "rope": torch.tensor([[-0.0]])}
    cache.layer(0).write(torch.tensor([5]), parts)
    read = cache.layer(0).read(torch.tensor([5]))
    assert read["latent"].tolist() == [[1.0, 1 + 2**-6, 1 + 2**-7]]
    assert torch.signbit(read["rope"]).all()


def test_float16_rows_round_to_nearest_even_and_overflow_to_infinity() -> None:
    cache = poisoned("f16", latent=4, rope=1)
    # 1 + 2**-11 lies halfway between 1 and 1 + 2**-10; 65520 halfway between the largest number and what would follow.
    latent = torch.tensor([[1 + 2**-11, 1 + 3 * 2**-11, 65519.0, 65520.0]])
    cache.layer(0).write(torch.tensor([5]), {"latent": latent, "rope": torch.tensor([[-(2**-24)]])})
    read = cache.layer(0).read(torch.tensor([5]))
    assert read["latent"].tolist() == [[1.0, 1 + 2**-9, 65504.0, float("inf")]]
    assert read["rope"].item() == -(2**-24)


def test_rows_of_any_float_type_and_stride_are_taken() -> None:
    cache = poisoned()
    parts = random_parts()
    strided = {name: torch.stack([part, part], dim=-1).double()[..., 0] for name, part in parts.items()}
    cache.layer(0).write(SLOTS, strided)
    assert torch.equal(cache.layer(0).read(SLOTS)["latent"], parts["latent"])


def test_copied_pages_are_the_same_in_every_layer_and_the_source_stays() -> None:
    cache = poisoned()
    cache.storage.copy_(torch.arange(cache.storage.numel()).view_as(cache.storage))
    before = cache.storage.clone()
    cache.copy_pages([0], [2])
    assert torch.equal(cache.storage[:, 2], before[:, 0])
    assert torch.equal(cache.storage[:, :2], before[:, :2])


@pytest.mark.parametrize("format", [name for name in FORMATS if name not in ("f32", "bf16", "f16")])
def test_rows_of_codes_come_back_from_their_slots_and_nothing_else_is_written(format: str) -> None:
    layout = CacheLayout(mla_row(format, kv_lora_rank=70, qk_rope_head_dim=2), 2, 4)
    cache = LatentCache(layout, 3)
    cache.storage.fill_(255)
    parts = random_parts(70)
    cache.layer(1).write(SLOTS, parts)
    read = cache.layer(1).read(SLOTS)
    assert torch.equal(read["rope"], parts["rope"].bfloat16().float())
    assert (read["latent"] - parts["latent"]).abs().max() < parts["latent"].abs().max() / 15
    untouched = torch.ones(12, dtype=torch.bool)
    untouched[SLOTS] = False
    assert (cache.storage[1].view(12, -1)[untouched] == 255).all()
    assert (cache.storage[0] == 255).all()
    none = torch.empty(0, dtype=torch.int64)
    cache.layer(0).write(none, {"latent": torch.empty(0, 70), "rope": torch.empty(0, 2)})
    assert cache.layer(0).read(none)["latent"].shape == (0, 70)
    assert (cache.storage[0] == 255).all()


def test_writing_nothing_is_legal() -> None:
    cache = poisoned()
    none = torch.empty(0, dtype=torch.int64)
    cache.layer(0).write(none, {"latent": torch.empty(0, 6), "rope": torch.empty(0, 2)})
    assert cache.layer(0).read(none)["latent"].shape == (0, 6)
    assert cache.storage.isnan().all()


@pytest.mark.parametrize(
    "wrong",
    [
        {"latent": torch.zeros(3, 6)},
        {"latent": torch.zeros(3, 6), "rope": torch.zeros(3, 2), "value": torch.zeros(3, 1)},
        {"latent": torch.zeros(3, 5), "rope": torch.zeros(3, 3)},
        {"latent": torch.zeros(18), "rope": torch.zeros(3, 2)},
    ],
)
def test_rows_of_another_shape_are_refused(wrong: dict[str, torch.Tensor]) -> None:
    cache = poisoned()
    with pytest.raises(ShapeError):
        cache.layer(0).write(SLOTS, wrong)
    assert cache.storage.isnan().all()


def test_a_cache_without_pages_is_refused() -> None:
    with pytest.raises(OptionError, match="num_pages"):
        LatentCache(CacheLayout(mla_row("f32", kv_lora_rank=1, qk_rope_head_dim=1), 1, 4), 0)
