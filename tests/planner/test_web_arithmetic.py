"""The page's script answers what the Python API answers, to the byte: every model and format, many ways to serve."""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from latentkv.cache.layout import FORMATS
from latentkv.errors import LatentKVError
from latentkv.planner.catalog import find_model, model_names
from latentkv.planner.curves import contexts_up_to
from latentkv.planner.memory import Deployment
from latentkv.planner.model import Model
from latentkv.planner.parallel import Parallel
from latentkv.planner.plan import Plan, Question, make_plan
from latentkv.planner.units import GIB, in_gb_and_gib, parse_bytes, parse_tokens
from latentkv.planner.web.data import page_data
from latentkv.planner.web.page import scripts

NODE = shutil.which("node") or shutil.which("nodejs")
HERE = Path(__file__).parent
LAYOUTS = (
    Parallel(),
    Parallel(tensor=8),
    Parallel(tensor=4, context=2, pipeline=2),
    Parallel(tensor=2, data=4),
    Parallel(tensor=6, pipeline=3),
    Parallel(data=8),
    Parallel(tensor=16, context=16),
)
LOADS = ((1, 1), (4097, 33), (131_072, 7), (1_000_000, 1))
TEXTS = (
    "80GiB",
    "80 GB",
    "1.5TiB",
    "32k",
    "1M",
    "1,024",
    "0.3k",
    "80",
    "80 GX",
    "-3",
    "0",
    "0GB",
    "",
    "1e3",
    "2.5 kib",
)
SHOWN = (0, 1, 999, 1000, 1536, 2_281_701_376, 2_415_919_104, 85_899_345_920, 123_456_789, 10**15)

pytestmark = pytest.mark.skipif(NODE is None, reason="node, which runs the page's script, is not installed")


def countable() -> list[Model]:
    found = []
    for name in model_names():
        try:
            found.append(find_model(name))
        except LatentKVError:
            continue
    return found


def question(**choices: Any) -> Question:
    parallel, weights, pages = choices["parallel"], choices["weights"], choices["page_tokens"]
    deployment = Deployment(
        weights=weights,
        parallel=parallel,
        page_tokens=pages,
        step_tokens=choices.get("step_tokens", 2048),
        activation_bytes=choices.get("activation_bytes"),
        reserve_bytes=choices.get("reserve_bytes", 0),
    )
    context_tokens, users = choices["load"]
    return Question(
        context_tokens=context_tokens,
        users=users,
        formats=choices["formats"],
        memory_bytes=choices["memory_bytes"],
        weights=weights,
        deployment=deployment,
    )


def questions_for(model: Model) -> list[Question]:
    """Every format and layout under two loads each; some with a memory, whose answers are searched for."""
    weights = "fp8" if model.params_total is not None else "none"
    forward = [
        question(
            load=LOADS[(number + turn) % 4],
            parallel=layout,
            formats=tuple(FORMATS),
            memory_bytes=None,
            weights=weights,
            page_tokens=(1, 64, 16, 256)[number % 4],
        )
        for number, layout in enumerate(LAYOUTS)
        for turn in (0, 1)
    ]
    stated = "13.7GiB" if model.params_total is not None else "none"
    reverse = [
        question(
            load=LOADS[1],
            parallel=layout,
            formats=("int6",),
            memory_bytes=memory_bytes,
            weights=stated,
            page_tokens=64,
            step_tokens=512,
            activation_bytes=activations,
            reserve_bytes=2 * GIB,
        )
        for layout, memory_bytes, activations in (
            (Parallel(tensor=2, data=2), 80 * GIB, None),
            (Parallel(tensor=4, context=4), 141_000_000_000, 1_234_567_891),
        )
    ]
    return forward + reverse


def for_the_page(question: Question) -> dict[str, Any]:
    deployment = question.deployment
    weights = question.weights or "bf16"
    return {
        "contextTokens": question.context_tokens,
        "users": question.users,
        "formats": question.formats,
        "memoryBytes": question.memory_bytes,
        "deployment": {
            "pageTokens": deployment.page_tokens,
            "weights": parse_bytes(weights) if weights[0].isdigit() else weights,
            "parallel": asdict(deployment.parallel),
            "stepTokens": deployment.step_tokens,
            "activationBytes": deployment.activation_bytes,
            "reserveBytes": deployment.reserve_bytes,
        },
    }


def comparable(plan: Plan) -> dict[str, Any]:
    """The plan's numbers as `latentkv plan --json` has them."""
    devices = []
    for serving in plan.serving:
        need = {f"{name}_bytes": size for name, size in asdict(serving.need).items()}
        devices.append({**asdict(serving), "need": {**need, "total_bytes": serving.need.total}, "weights": None})
    return {
        "model": plan.model.name,
        "params_total": plan.model.params_total,
        "memory_bytes": plan.question.memory_bytes,
        "cache": [asdict(line) for line in plan.cache],
        "twins": [asdict(line) for line in plan.twins],
        "devices": devices,
    }


def answers(folder: Path, **input: Any) -> dict[str, Any]:
    (folder / "page.js").write_text(scripts("plan.js", "sizes.js", "notes.js"), "utf-8")
    (folder / "input.json").write_text(json.dumps(input), "utf-8")
    command = [str(NODE), str(HERE / "web_answers.js"), str(folder / "page.js"), str(folder / "input.json")]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stderr
    answer: dict[str, Any] = json.loads(result.stdout)
    return answer


@pytest.fixture(autouse=True)
def own_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LATENTKV_HOME", str(tmp_path / "home"))


def test_every_plan_of_the_page_is_that_of_python(tmp_path: Path) -> None:
    asked = [(model, question) for model in countable() for question in questions_for(model)]
    questions = [{"model": model.name, "question": for_the_page(question)} for model, question in asked]
    got = answers(tmp_path, data=page_data(), questions=questions, contexts=[], texts=[], shown=[])["plans"]
    assert len(got) == len(asked) > 1000
    for (model, question), answer in zip(asked, got, strict=True):
        plan = make_plan(model, question)
        expected = comparable(plan)
        for device in answer["devices"]:
            device["weights"] = None
        assert {name: answer[name] for name in expected} == expected, (model.name, question)
        kept = [note for note in plan.notes if not note.startswith("Step is an estimate")]
        assert [note for note in answer["notes"] if not note.startswith("Step is an estimate")] == kept


def test_sizes_are_read_and_told_as_python_does(tmp_path: Path) -> None:
    longest = (1, 1000, 1024, 4096, 163_840, 1 << 20)
    got = answers(tmp_path, data=page_data(), questions=[], contexts=longest, texts=TEXTS, shown=SHOWN)
    assert got["contexts"] == [list(contexts_up_to(tokens)) for tokens in longest]
    assert got["shown"] == [in_gb_and_gib(size) for size in SHOWN]
    for name, parse in (("bytes", parse_bytes), ("tokens", parse_tokens)):
        assert got[name] == [_parsed(parse, text) for text in TEXTS]


def _parsed(parse: Any, text: str) -> int | None:
    try:
        return int(parse(text))
    except LatentKVError:
        return None
