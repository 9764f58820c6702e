"""`latentkv plan --web` from the command line: the page written, served and refused."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest

from support.command_line import Run, assert_one_sentence

V3 = "deepseek-ai/DeepSeek-V3"
COMMAND = [sys.executable, "-c", "from latentkv.cli.main import main; main()", "plan", "--web", "--no-open"]


@pytest.fixture(autouse=True)
def own_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LATENTKV_HOME", str(tmp_path / "home"))


def data_in(page: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="planner-data">(.*?)</script>', page, re.DOTALL)
    assert found is not None
    data: dict[str, Any] = json.loads(found[1])
    return data


def test_the_page_is_one_file_that_fetches_nothing(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "plan.html"
    result = run("plan", "--web", "--out", file)
    assert result.exit_code == 0, result.stderr
    page = file.read_text("utf-8")
    assert "default-src 'none'" in page
    assert not re.findall(r"""(?:src|href|action)\s*=\s*["'](?!#|data:)""", page)
    assert not re.findall(r"\b(?:fetch|XMLHttpRequest|WebSocket|import)\s*\(|@import|url\(", page)
    assert data_in(page)["start"]["models"][0] == V3


def test_the_page_opens_with_the_choices_of_the_command(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "plan.html"
    choices = ("--context", "16k", "--users", "3", "--format", "int6", "--memory", "80GiB", "--tp", "2")
    assert run("plan", V3, *choices, "--device", "h100 pcie", "--web", "--out", file).exit_code == 0
    start = data_in(file.read_text("utf-8"))["start"]
    expected = {
        "context": "16k",
        "users": "3",
        "formats": ["int6"],
        "memory": "80GiB",
        "tensor": "2",
        "weights": "bf16",
    }
    assert {name: start[name] for name in expected} == expected
    assert (start["models"], start["devices"]) == ([V3], ["NVIDIA H100 PCIe"])


def test_a_configuration_of_ones_own_is_on_the_page(run: Run, tmp_path: Path) -> None:
    config = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 100,
        "intermediate_size": 128,
        "max_position_embeddings": 512,
    }
    (tmp_path / "config.json").write_text(json.dumps(config), "utf-8")
    file = tmp_path / "plan.html"
    assert run("plan", tmp_path / "config.json", "--web", "--out", file).exit_code == 0
    data = data_in(file.read_text("utf-8"))
    assert data["start"]["models"] == [data["models"][0]["name"]]
    assert data["models"][0]["step"]["vocabulary"] == 100


def test_served_until_interrupted() -> None:
    with subprocess.Popen(
        [*COMMAND, "--port", "0"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as server:
        assert server.stdout is not None
        address = server.stdout.readline().split()[0]
        with urlopen(address, timeout=30) as answer:
            assert data_in(answer.read().decode("utf-8"))["formats"]
        with pytest.raises(HTTPError, match="404"):
            urlopen(f"{address}other", timeout=30)
        server.send_signal(signal.SIGINT)
        _, said = server.communicate(timeout=30)
    assert (server.returncode, said.strip()) == (0, "")


def test_a_port_in_use_is_one_sentence(run: Run) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert_one_sentence(run("plan", "--web", "--no-open", "--port", str(port)), str(port), "in use", "--port 0")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--web", "--port", "70000"), ("--port", "65535")),
        (("--web", "--json"), ("--web", "--json")),
        (("--web", "--device", "9654"), ("AMD EPYC 9654", "--memory")),
        ((V3, "--port", "8000"), ("--port", "--web")),
        ((V3, "--out", "plan.html"), ("--out", "--web")),
        ((), ("MODEL",)),
    ],
)
def test_what_cannot_be_asked(run: Run, arguments: tuple[str, ...], words: tuple[str, ...]) -> None:
    assert_one_sentence(run("plan", *arguments), *words)
