"""The roofline against hand-made numbers, published ones, and its own consistency."""

from __future__ import annotations

from math import inf
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latentkv.errors import OptionError, UnsupportedModelError
from latentkv.geometry import MLAGeometry
from latentkv.planner.catalog import find_model
from latentkv.planner.devices import find_device
from latentkv.planner.roofline import (
    Load,
    arithmetic_ratio,
    attention_work,
    ceilings,
    crossing_queries,
    touched_parameters,
    weights_work,
)
from latentkv.planner.roofline_plot import draw_roofline
from latentkv.planner.twins import twins

V3 = find_model("deepseek-ai/DeepSeek-V3")
ONE_LAYER = MLAGeometry(1, 128, 512, 64, 128, 128)


def test_latent_form_is_counted_as_flashmla_counts_it() -> None:
    """Its deep dive: 2 * 128 * (576 + 512) FLOP for 1,152 bytes, 241.8 FLOP per byte."""
    work = attention_work(ONE_LAYER, Load(context_tokens=1))
    assert (work.flops, work.read_bytes) == (2 * 128 * (576 + 512), 1152)
    assert work.intensity == pytest.approx(241.8, abs=0.05)


def test_mla_does_3_4_times_the_arithmetic_of_its_mha() -> None:
    assert arithmetic_ratio(ONE_LAYER) == pytest.approx(1088 / 320)


def test_head_form_pays_the_expansion_for_every_cached_token() -> None:
    load = Load(batch=3, context_tokens=100, queries=4)
    expected = 2 * 128 * (320 * 3 * (400 - 6) + 512 * 256 * 300)
    assert attention_work(ONE_LAYER, load, form="head").flops == expected


def test_decode_of_one_sequence_is_memory_bound_and_speculation_is_not() -> None:
    h800 = find_device("H800")
    for queries, bound in ((1, "memory"), (2, "arithmetic")):
        own = ceilings(V3, h800, Load(queries=queries))[0]
        assert own.attention_bound == bound
        assert own.weights_bound == "memory"


def test_on_a_cpu_every_form_of_mla_is_bound_by_arithmetic() -> None:
    rows = {row.name: row for row in ceilings(V3, find_device("EPYC 9654"), Load(), weights=None)}
    assert rows["MLA, latent form"].attention_bound == "arithmetic"
    assert rows["MHA"].attention_bound == "memory"
    assert rows["MLA, latent form"].tokens_per_second < rows["GQA-8"].tokens_per_second


def test_ceilings_are_never_above_either_bound() -> None:
    h100, load = find_device("H100 SXM"), Load(batch=64, context_tokens=32768)
    for row in ceilings(V3, h100, load, weights="fp8"):
        assert row.weights is not None
        read = row.attention.read_bytes + row.weights.read_bytes
        assert row.seconds >= read / h100.bandwidth_bytes_s * (1 - 1e-12)


@given(queries=st.integers(1, 500))
def test_the_crossing_is_where_the_times_cross(queries: int) -> None:
    device = find_device("H100 SXM")
    for twin in twins(ONE_LAYER):
        crossing = crossing_queries(ONE_LAYER, twin, device, format="bf16", precision="bf16")
        load = Load(context_tokens=1 << 20, queries=queries)
        mla, other = (attention_work(form, load).seconds(device, "bf16") for form in (ONE_LAYER, twin))
        if abs(queries - crossing) > 0.01 * crossing:  # the causal corner of the step itself is not in the crossing
            assert (other < mla) == (queries > crossing or crossing == 1)


def test_crossings_by_machine() -> None:
    mha, _, mqa = twins(ONE_LAYER)
    gpu, cpu, apple = find_device("H100 SXM"), find_device("EPYC 9654"), find_device("M4 Max")
    assert 80 < crossing_queries(ONE_LAYER, mha, gpu, format="bf16", precision="bf16") < 95
    assert crossing_queries(ONE_LAYER, mqa, gpu, format="bf16", precision="bf16") == 1
    assert crossing_queries(ONE_LAYER, mqa, cpu, format="bf16", precision="fp32") == 1
    assert crossing_queries(ONE_LAYER, mha, apple, format="bf16", precision="fp32") == inf


def test_experts_touched_go_from_active_to_all() -> None:
    assert V3.params_active is not None
    assert V3.params_total is not None
    assert touched_parameters(V3, 1) == pytest.approx(V3.params_active)
    assert touched_parameters(V3, 100_000) == pytest.approx(V3.params_total)
    assert touched_parameters(V3, 8) < touched_parameters(V3, 9)


def test_an_untied_embedding_is_looked_up_not_multiplied() -> None:
    work = weights_work(V3, Load())
    assert V3.params_active is not None
    assert work.flops == 2 * (V3.params_active - V3.fields["vocab_size"] * V3.hidden_size)  # type: ignore[operator]


def test_hybrids_and_impossible_loads_are_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="do not all attend alike"):
        ceilings(find_model("openai/gpt-oss-20b"), find_device("L4"), Load())
    with pytest.raises(OptionError, match="batch"):
        Load(batch=0)
    with pytest.raises(OptionError, match="context"):
        Load(context_tokens=2, queries=3)


def test_the_plot_is_drawn_and_other_files_are_refused(tmp_path: Path) -> None:
    devices = (find_device("H100 SXM"), find_device("EPYC 9654"))
    draw_roofline(V3, devices, Load(), tmp_path / "roofline.svg")
    text = (tmp_path / "roofline.svg").read_text()
    assert "<svg" in text
    with pytest.raises(OptionError, match="ending in"):
        draw_roofline(V3, devices, Load(), tmp_path / "roofline.txt")
    with pytest.raises(OptionError, match="published rate"):
        draw_roofline(V3, (find_device("M4 Max"),), Load(), tmp_path / "roofline.png")
