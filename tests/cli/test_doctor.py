"""`latentkv doctor`: what it reports, and that it survives missing parts."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

import latentkv
from support.command_line import Run

CODE = """
import sys
for name in {absent!r}: sys.modules[name] = None
sys.argv = ["latentkv", "doctor", "--json"]
from latentkv.cli.main import main
main()
"""


def test_the_json_has_every_section(run: Run) -> None:
    result = run("doctor", "--json")
    assert result.exit_code == 0
    facts = json.loads(result.stdout)
    assert set(facts) == {"installation", "cpu", "memory", "native", "torch", "packages", "environment"}
    assert facts["installation"]["latentkv"] == latentkv.__version__
    assert facts["installation"]["python"].endswith(".".join(map(str, sys.version_info[:3])))
    assert facts["cpu"]["cores"] >= facts["cpu"]["usable_cores"] >= 1
    assert facts["torch"]["version"] == facts["packages"]["torch"]


def test_the_table_names_every_section(run: Run) -> None:
    result = run("doctor")
    assert result.exit_code == 0
    headings = [line for line in result.stdout.splitlines() if not line.startswith(" ")]
    assert headings == ["installation", "cpu", "memory", "native", "torch", "packages", "environment"]


@pytest.mark.parametrize("absent", [("torch",), ("latentkv._native",), ("torch", "latentkv._native")])
def test_it_survives_missing_parts_and_says_why(absent: tuple[str, ...]) -> None:
    code = CODE.format(absent=absent)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert ("cannot be imported" in facts["torch"].get("problem", "")) == ("torch" in absent)
    if "latentkv._native" in absent:
        assert "latentkv._native" in facts["native"]["problem"]


def test_variables_and_a_bad_value_are_shown(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LATENTKV_ISA", "bogus")
    facts = json.loads(run("doctor", "--json").stdout)
    assert facts["environment"] == {"LATENTKV_ISA": "bogus"}
    assert "problem" in facts["native"]
