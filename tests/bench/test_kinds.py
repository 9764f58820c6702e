"""The twins differ in attention alone, and a pile of requests is counted as it ran."""

from __future__ import annotations

import pytest

from latentkv.bench.kinds import COMMON, KINDS, config_of, random_twin
from latentkv.bench.offline import Traffic, cache_tokens_for, run_pile
from latentkv.cache.layout import layout_for
from latentkv.errors import CapacityError
from latentkv.geometry import from_config

SMALL = {"hidden_size": 64, "num_hidden_layers": 2, "first_k_dense_replace": 2, "intermediate_size": 96}


def test_bytes_keep_the_ratios_of_large_models() -> None:
    sizes = {kind: layout_for(from_config(config_of(kind)), "bf16").bytes_per_token for kind in KINDS}
    layers = COMMON["num_hidden_layers"]
    assert {kind: size // layers for kind, size in sizes.items()} == {
        "MHA": 4096,
        "GQA-8": 2048,
        "GQA-4": 1024,
        "MQA": 256,
        "MLA": 576,
    }
    # DeepSeek-V2: 2 * 8 * 128 elements of GQA-8 against 512 + 64.
    assert sizes["GQA-8"] / sizes["MLA"] == 2 * 8 * 128 / 576


def test_twins_are_of_about_one_size() -> None:
    counts = {kind: random_twin(kind, num_hidden_layers=2, first_k_dense_replace=2).num_parameters for kind in KINDS}
    assert max(counts.values()) < 1.2 * min(counts.values())


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_runs(kind: str) -> None:
    model = random_twin(kind, **SMALL)
    traffic = Traffic(requests=3, prompt_tokens=70, output_tokens=3)
    outcome = run_pile(model, traffic, cache_tokens=1024)
    assert outcome.peak_running == 3
    assert outcome.preemptions == 0
    assert outcome.recomputed_tokens == 0
    assert outcome.bytes_per_token == layout_for(model.geometry, "bf16").bytes_per_token


def test_less_memory_runs_fewer_requests_at_once() -> None:
    traffic = Traffic(requests=6, prompt_tokens=70, output_tokens=4)
    outcomes = {}
    for kind in ("MHA", "MLA"):
        model = random_twin(kind, **SMALL)
        outcomes[kind] = run_pile(model, traffic, cache_tokens=cache_tokens_for(model, 4 * 64 * 8192))
    assert outcomes["MHA"].cache_bytes == 4 * 64 * 8192
    assert outcomes["MHA"].peak_running <= 2
    assert outcomes["MLA"].peak_running == 6


def test_a_budget_below_one_page_is_refused() -> None:
    with pytest.raises(CapacityError, match="cache budget"):
        cache_tokens_for(random_twin("MLA", **SMALL), 100)
