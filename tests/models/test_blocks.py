"""Native blocks compute what the op by op path does, to the bit, over every family, format and kind of batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from latentkv.backends.guard import Guard
from latentkv.backends.isa import active_isa, available_isas
from latentkv.backends.kernels import Kernels, native_kernels
from latentkv.backends.native_blocks import MOST_TOKENS, NativeBlocks
from latentkv.cache.batch import Batch
from latentkv.cache.latent import LatentCache
from latentkv.cache.layout import FORMATS, layout_for
from latentkv.errors import ShapeError
from latentkv.models.load import Attention, load_model
from latentkv.models.model import Model
from latentkv.ops.linear import Projection
from support.compare import Tolerance, assert_close
from support.hostile import poison
from support.tiny_models import FAMILIES, VOCAB, Family, save_model

PAGE_TOKENS = 8
PAGES = 40
# A first step, single tokens, several of some sequences and none of others.
STEPS = [[(5, 5), (17, 17), (1, 1)], [(1, 6), (1, 18), (1, 2)], [(3, 9), (0, 18), (1, 3)], [(1, 10)]]
MLA = next(family for family in FAMILIES if family.name == "deepseek-v2 dense")
MOE = next(family for family in FAMILIES if family.name.startswith("deepseek-v3 (moe"))
GQA = next(family for family in FAMILIES if family.name == "qwen3")

pytestmark = pytest.mark.skipif(not available_isas(), reason="needs the native extension")


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def load(family: Family, folder: Path, **options: Any) -> Model:
    save_model(family, folder)
    return load_model(folder, attention=attention_of(family), **options).model


def attention_of(family: Family) -> Attention:
    return "mla" if "kv_lora_rank" in family.fields else "gqa"


def forbidden(*_: object, **__: object) -> Any:
    raise AssertionError("an op ran on its own")


def only_blocks(kernels: Kernels) -> Kernels:
    """Kernels of which layers can use nothing but blocks."""
    ops = ("rms_norm", "rotate_query", "write_latent", "write_rows", "linear_gated", "linear_groups", "choose")
    return replace(kernels, **dict.fromkeys(ops, forbidden))


def make_batch(lengths: Sequence[tuple[int, int]]) -> Batch:
    """Sequence i has the pages i * 10 ... in reverse."""
    pages = [[10 * i + 9 - p for p in range(-(-context // PAGE_TOKENS))] for i, (_, context) in enumerate(lengths)]
    return Batch.build(
        query_lens=[query for query, _ in lengths],
        context_lens=[context for _, context in lengths],
        pages=pages,
        page_tokens=PAGE_TOKENS,
    )


def new_cache(model: Model, format: str) -> LatentCache:
    cache = LatentCache(layout_for(model.geometry, format, page_tokens=PAGE_TOKENS), PAGES)
    poison(cache.storage)
    return cache


def step(model: Model, cache: LatentCache, batch: Batch) -> Tensor:
    tokens = torch.arange(batch.num_tokens) * 31 % VOCAB
    return model.forward(tokens, batch, cache, logit_rows=torch.arange(batch.num_tokens))


def run(model: Model, kernels: Kernels, format: str, **execution: Any) -> tuple[list[Tensor], Tensor]:
    """Logits of all steps, and the cache they left."""
    model.execution = replace(model.execution, kernels=kernels, **{"form": "latent"} | execution)
    cache = new_cache(model, format)
    logits = [step(model, cache, make_batch(lengths)) for lengths in STEPS]
    return logits, cache.storage.view(torch.uint8)


def assert_same(model: Model, format: str, *, narrow: bool = False, **execution: Any) -> None:
    kernels = native_kernels(narrow=narrow)
    apart, rows_apart = run(model, replace(kernels, blocks=None), format, **execution)
    whole, rows_whole = run(model, only_blocks(kernels), format, **execution)
    for got, want in zip(whole, apart, strict=True):
        assert torch.equal(got, want)
        assert bool(got.isfinite().all())
    assert torch.equal(rows_whole, rows_apart)
    assert not kernels.fallbacks


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_every_family(family: Family, tmp_path: Path) -> None:
    save_model(family, tmp_path)
    for dtype, format in (("float32", "f32"), ("bfloat16", "bf16")):
        assert_same(load_model(tmp_path, attention=attention_of(family), dtype=dtype).model, format)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Model]:
    return {family.name: load(family, tmp_path_factory.mktemp("model"), dtype="float32") for family in (MLA, GQA)}


@pytest.mark.parametrize("isa", available_isas())
def test_every_format_on_every_instruction_set(
    isa: str, models: dict[str, Model], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LATENTKV_ISA", isa)
    for format in FORMATS:
        assert_same(models[MLA.name], format)
        assert_same(models[GQA.name], format)


@pytest.mark.parametrize("family", [MLA, GQA], ids=lambda family: family.name)
def test_deterministic(family: Family, tmp_path: Path) -> None:
    assert_same(load(family, tmp_path, dtype="bfloat16"), "bf16", deterministic=True)


def test_activations_rounded_to_bf16(tmp_path: Path) -> None:
    model = load(MLA, tmp_path, dtype="float32", activations="bf16")
    as_loaded, _ = run(model, model.execution.kernels, "f32")
    assert_same(model, "f32", narrow=True)
    rounded, _ = run(model, native_kernels(narrow=True), "f32")
    exact, _ = run(model, native_kernels(), "f32")
    for got, want, other in zip(as_loaded, rounded, exact, strict=True):
        assert torch.equal(got, want)
        assert not torch.equal(got, other)


def test_a_model_seen_as_latents(tmp_path: Path) -> None:
    save_model(GQA, tmp_path)
    assert_same(load_model(tmp_path, attention="mla", dtype="float32").model, "int8")


@pytest.mark.parametrize("family", [one for one in FAMILIES if "moe" in one.name], ids=lambda family: family.name)
def test_mixtures_of_experts_are_blocks_too(family: Family, tmp_path: Path) -> None:
    model = load(family, tmp_path, dtype="float32")
    assert_same(model, "f32")
    assert_same(model, "int8", narrow=True)
    assert model._blocks is not None
    halves = 2 * model.config.geometry.num_hidden_layers
    assert [len(stretch) for stretch in model._blocks.stretches] == list(range(halves, 0, -1))


def test_what_kernels_decline_runs_between_blocks(tmp_path: Path) -> None:
    model = load(MOE, tmp_path, dtype="float32")
    # Of one layer's experts one is kept in a dtype that no kernel takes.
    experts = model.layers[1].feed_forward.experts
    odd = replace(experts[0], up=Projection(experts[0].up.weight.double()))
    object.__setattr__(model.layers[1].feed_forward, "experts", (odd, *experts[1:]))
    kernels = native_kernels()
    model.execution = replace(model.execution, kernels=kernels, form="latent")
    step(model, new_cache(model, "f32"), make_batch([(5, 5)]))
    assert model._blocks is not None
    # The first layer is dense: its two halves and the next layer's attention are one stretch.
    halves = 2 * model.config.geometry.num_hidden_layers
    assert [len(stretch) for stretch in model._blocks.stretches] == [3, 2, 1, 0, *range(halves - 4, 0, -1)]
    assert any(reason.startswith("blocks: ") for reason in kernels.fallbacks)


def test_one_model_over_caches_of_both_kinds(tmp_path: Path) -> None:
    model = load(MLA, tmp_path, dtype="float32")
    for format in ("int8", "f32", "int8"):
        assert_same(model, format)


def test_head_form_long_chunks_and_other_backends_run_op_by_op(tmp_path: Path) -> None:
    model = load(MLA, tmp_path, dtype="float32")
    kernels = native_kernels()
    assert kernels.blocks is not None
    refusing = replace(kernels, blocks=None)
    for changed, lengths in (
        ({"form": "head"}, [(1, 5)]),
        ({"backend": "portable"}, [(1, 5)]),
        ({"form": "latent"}, [(MOST_TOKENS + 1, MOST_TOKENS + 1)]),
        ({"form": "latent"}, []),
    ):
        results = []
        for chosen in (kernels, refusing):
            model.execution = replace(model.execution, **{"kernels": chosen, "backend": "auto"} | changed)
            cache, batch = new_cache(model, "f32"), make_batch(lengths)
            cache.storage.zero_()
            results.append(step(model, cache, batch))
        assert torch.equal(*results)
    assert model._blocks is None
    assert not kernels.fallbacks


def test_bad_slots_and_pages_raise_before_anything_is_written(tmp_path: Path) -> None:
    model = load(MLA, tmp_path, dtype="float32")
    model.execution = replace(model.execution, kernels=only_blocks(native_kernels()), form="latent")
    cache, batch = new_cache(model, "f32"), make_batch([(1, 6), (1, 1)])
    before = cache.storage.view(torch.uint8).clone()
    rows = PAGES * PAGE_TOKENS
    for slot in (-1, rows, 2**40):
        with pytest.raises(IndexError, match=f"slots: expected 0 to {rows - 1}, got {slot} at position 1"):
            step(model, cache, replace(batch, slots=torch.tensor([6, slot])))
    for page in (-1, PAGES, 2**31 - 1):
        table = batch.page_table.clone()
        table[1, 0] = page
        with pytest.raises(ShapeError, match="page_table"):
            step(model, cache, replace(batch, page_table=table))
    assert torch.equal(cache.storage.view(torch.uint8), before)


def test_strided_slots_are_declined_and_counted_once(tmp_path: Path) -> None:
    model = load(MLA, tmp_path, dtype="float32")
    kernels = native_kernels()
    batch = make_batch([(1, 1), (1, 1)])
    spread = torch.zeros(2, 2, dtype=torch.int64)
    spread[:, 0] = batch.slots
    results = []
    for chosen in (kernels, replace(kernels, blocks=None)):
        model.execution = replace(model.execution, kernels=chosen, form="latent")
        results.append(step(model, new_cache(model, "f32"), replace(batch, slots=spread[:, 0])))
    assert torch.equal(*results)
    assert kernels.fallbacks["blocks: slots: strided"] == 1


def test_sums_that_are_not_finite_are_computed_again_op_by_op(tmp_path: Path) -> None:
    """A row of NaN in layer 1: the first layer's blocks end well, the second's attention does not."""
    model = load(MLA, tmp_path, dtype="float32")
    kernels = native_kernels()
    results = []
    for chosen in (kernels, replace(kernels, blocks=None)):
        model.execution = replace(model.execution, kernels=chosen, form="latent")
        cache = new_cache(model, "f32")
        step(model, cache, make_batch([(5, 5)]))
        cache.storage[1, 9, 3] = torch.nan
        results.append((step(model, cache, make_batch([(1, 6)])), cache.storage.view(torch.uint8)))
    assert bool(results[0][0].isnan().all())
    assert torch.equal(results[0][0].isnan(), results[1][0].isnan())
    assert torch.equal(results[0][1], results[1][1])


def test_under_a_guard_blocks_run_and_say_so(tmp_path: Path) -> None:
    model = load(MLA, tmp_path, dtype="float32")
    guard = Guard()
    model.execution = replace(model.execution, kernels=only_blocks(native_kernels()), form="latent", guard=guard)
    cache = new_cache(model, "f32")
    step(model, cache, make_batch([(5, 5)]))
    step(model, cache, make_batch([(1, 6)]))
    guard.begin(make_batch([]))
    assert guard.state().paths == {f"native:{active_isa()}:latent": 2}
    assert not guard.state().failures


def test_blocks_that_raise_under_a_guard_are_replaced_in_the_same_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load(MLA, tmp_path, dtype="float32")
    model.execution = replace(model.execution, kernels=native_kernels(), form="latent")
    want = step(model, new_cache(model, "f32"), make_batch([(5, 5)]))

    def broken(*_: object, **__: object) -> int:
        raise RuntimeError("broken")

    monkeypatch.setattr(NativeBlocks, "run", broken)
    with pytest.raises(RuntimeError, match="broken"):
        step(model, new_cache(model, "f32"), make_batch([(5, 5)]))
    guard = Guard()
    model.execution = replace(model.execution, guard=guard)
    got = step(model, new_cache(model, "f32"), make_batch([(5, 5)]))
    assert_close(got, want, tolerance=Tolerance(torch.float32, of_max=1e-5))
    assert guard.state().failures == {("native", "RuntimeError"): 1}
    assert guard.state().replaced == {("native", "portable"): 1}
