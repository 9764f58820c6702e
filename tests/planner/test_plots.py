"""Curves against the footprints they are made of, and pictures in each kind of file."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from latentkv.errors import OptionError, UnsupportedError
from latentkv.planner.cache_plots import draw_plans
from latentkv.planner.catalog import find_model
from latentkv.planner.curves import cache_curves, contexts_up_to, merged, user_curves
from latentkv.planner.footprint import footprint
from latentkv.planner.memory import Deployment, most_users
from latentkv.planner.plan import Plan, Question, make_plan
from latentkv.planner.units import GIB

V2 = find_model("deepseek-ai/DeepSeek-V2")
LITE = find_model("deepseek-ai/DeepSeek-V2-Lite")


def plans() -> list[Plan]:
    question = Question(context_tokens=4096, formats=("bf16", "int4"), memory_bytes=80 * GIB)
    return [make_plan(LITE, question), make_plan(find_model("meta-llama/Llama-3.1-8B"), question)]


def test_contexts_are_even_on_a_logarithmic_axis() -> None:
    assert contexts_up_to(4096) == (1024, 1448, 2048, 2896, 4096)
    assert contexts_up_to(5000)[-2:] == (4096, 5000)
    assert contexts_up_to(10) == (10,)


def test_cache_curves() -> None:
    curves = cache_curves([V2], ["bf16", "f16", "int4"], longest_tokens=4096, page_tokens=64, with_twins=True)
    assert [curve.label for curve in merged(curves)] == [
        "DeepSeek-V2, bf16 = f16",
        "DeepSeek-V2, int4",
        "as MHA, bf16",
        "as GQA-8, bf16",
        "as MQA, bf16",
    ]
    assert curves[2].values[-1] == footprint(V2.layers, format="int4").sequence_bytes(4096)


def test_user_curves() -> None:
    served = Deployment(weights="int4")
    [curve] = user_curves([LITE], ["fp8"], served, memory_bytes=40 * GIB, longest_tokens=2048)
    fp8 = Deployment(weights="int4", format="fp8")
    assert curve.values[-1] == most_users(LITE, fp8, memory_bytes=40 * GIB, context_tokens=2048)
    assert list(curve.values) == sorted(curve.values, reverse=True)


@pytest.mark.parametrize(("suffix", "start"), [(".png", b"\x89PNG"), (".svg", b"<?xml"), (".html", b"<!doctype html>")])
def test_pictures(suffix: str, start: bytes, tmp_path: Path) -> None:
    file = tmp_path / f"plan{suffix}"
    draw_plans(plans(), file)
    content = file.read_bytes()
    assert content.startswith(start)
    assert len(content) > 10_000
    if suffix != ".png":
        assert b"DeepSeek-V2-Lite" in content


def test_a_model_that_does_not_fit_is_drawn_without_its_line(tmp_path: Path) -> None:
    question = Question(context_tokens=4096, memory_bytes=GIB)
    draw_plans([make_plan(V2, question)], tmp_path / "plan.svg")
    assert (tmp_path / "plan.svg").stat().st_size > 10_000


def test_other_kinds_of_file(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"plot: expected a file ending in \.png, \.svg, \.html"):
        draw_plans(plans(), tmp_path / "plan.gif")


def test_without_matplotlib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(UnsupportedError, match=r"pip install 'latentkv\[plot\]'"):
        draw_plans(plans(), tmp_path / "plan.png")
