"""The Grafana dashboard asks only for metrics, labels and histograms that a server of ours tells."""

from __future__ import annotations

import json
import re
import runpy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from latentkv.backends.guard import Guard
from latentkv.engine.engine import Engine
from latentkv.server.options import ServerOptions
from latentkv.server.run import make_context

FOLDER = Path(__file__).parents[2] / "deploy" / "grafana"
NAME = re.compile(r"latentkv_\w+")
LEGEND = re.compile(r"{{(\w+)}}")


@pytest.fixture(scope="module")
def told() -> dict[str, str]:
    """Kinds of all metrics of a server with a guard, by name as it is asked for."""

    def never() -> Engine:
        raise NotImplementedError

    context = make_context(never, ServerOptions(model_names=("tiny",)), guard=Guard())
    text = context.metrics.text().decode()
    return {family.name: family.type for family in text_string_to_metric_families(text)}


def dashboard() -> dict[str, Any]:
    return dict(json.loads((FOLDER / "latentkv.json").read_text("utf-8")))


def targets() -> Iterator[dict[str, Any]]:
    for panel in dashboard()["panels"]:
        yield from panel.get("targets", ())


def test_every_metric_is_told_by_the_server(told: dict[str, str]) -> None:
    asked = {name for target in targets() for name in NAME.findall(target["expr"])}
    assert len(asked) > 20
    for name in asked:
        kinds = {"_total": "counter", "_bucket": "histogram"}
        suffix = next((suffix for suffix in kinds if name.endswith(suffix)), "")
        assert told.get(name.removesuffix(suffix)) == kinds.get(suffix, "gauge"), name


def test_rates_are_of_counters_alone() -> None:
    for target in targets():
        for name in re.findall(r"rate\((\w+)", target["expr"]):
            assert name.endswith(("_total", "_bucket")), name


def test_legends_name_labels_that_are_kept() -> None:
    for target in targets():
        for label in LEGEND.findall(target["legendFormat"]):
            assert re.search(rf"by \([^)]*\b{label}\b", target["expr"]), target


def test_panels_do_not_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in dashboard()["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        taken |= cells


def test_the_file_is_what_its_script_makes() -> None:
    assert runpy.run_path(str(FOLDER / "make_dashboard.py"))["dashboard"]() == dashboard()
