"""What must start fast: imports and help pages that load neither torch nor rich nor the native extension."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = ("torch", "rich", "latentkv._native", "transformers", "huggingface_hub", "gguf", "jinja2")
REPORT = f"import sys; print(*[name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)"
RUN_MAIN = """
import atexit, sys
atexit.register(lambda: exec({report!r}))
sys.argv = ["latentkv", *{arguments!r}]
from latentkv.cli.main import main
main()
"""


def loaded_after(code: str) -> tuple[subprocess.CompletedProcess[str], list[str]]:
    """Run `code` in a fresh interpreter; the heavy modules that it left loaded."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)
    return done, done.stderr.split()


def test_the_report_sees_a_heavy_module() -> None:
    assert loaded_after(f"import rich; {REPORT}")[1] == ["rich"]


@pytest.mark.parametrize(
    "module",
    [
        "latentkv",
        "latentkv.geometry",
        "latentkv.cache.layout",
        "latentkv.cache.pages",
        "latentkv.cache.prefix",
        "latentkv.engine.state",
        "latentkv.engine.scheduler",
        "latentkv.engine.sampling_params",
        "latentkv.backends.isa",
        "latentkv.planner.plan",
        "latentkv.planner.cache_plots",
    ],
)
def test_module_imports_nothing_heavy(module: str) -> None:
    done, loaded = loaded_after(f"import {module}; {REPORT}")
    assert done.returncode == 0
    assert loaded == []


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["--version"],
        ["chat", "--help"],
        ["doctor", "--help"],
        ["generate", "--help"],
        ["inspect", "--help"],
        ["plan", "--help"],
        ["catalog", "--help"],
    ],
    ids=" ".join,
)
def test_help_and_version_load_nothing_heavy(arguments: list[str]) -> None:
    done, loaded = loaded_after(RUN_MAIN.format(report=REPORT, arguments=arguments))
    assert done.returncode == 0
    assert loaded == []
    assert "latentkv" in done.stdout
