"""Which instruction sets there are, and that the forced one is the one in use."""

from __future__ import annotations

import subprocess
import sys

import pytest

from latentkv.backends import isa
from latentkv.backends.kernels import choose_kernels
from latentkv.errors import OptionError


def test_the_extension_is_there_and_offers_the_baseline() -> None:
    assert isa.native_missing() == ""
    assert "baseline" in isa.available_isas()


def test_the_default_is_the_first_and_never_the_test_only_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LATENTKV_ISA", raising=False)
    assert isa.active_isa() == isa.available_isas()[0]
    assert isa.active_isa() not in ("avx2w16", "avx2tile")


def test_what_is_available_follows_from_the_cpu() -> None:
    flags = set(isa.cpu_flags())
    needs = {
        "avx512": {"avx512f", "avx512bw", "avx512vl", "avx512dq", "avx2", "fma", "f16c"},
        "avx2": {"avx2", "fma", "f16c"},
        "avx2w16": {"avx2", "fma", "f16c"},
        "avx2tile": {"avx2", "fma", "f16c"},
    }
    for name, needed in needs.items():
        assert (name in isa.available_isas()) == (needed <= flags)


@pytest.mark.parametrize("name", isa.available_isas())
def test_a_forced_instruction_set_is_the_one_in_use(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LATENTKV_ISA", name)
    assert isa.active_isa() == name
    assert isa.find_isa().name == name
    assert choose_kernels().name == f"native:{name}"


def test_an_explicit_name_wins_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LATENTKV_ISA", isa.available_isas()[0])
    assert isa.find_isa("baseline").name == "baseline"


def test_a_bogus_name_is_an_error_that_lists_the_available_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LATENTKV_ISA", "avx1024")
    listed = ", ".join(isa.available_isas())
    for call in (isa.active_isa, isa.find_isa, choose_kernels):
        with pytest.raises(OptionError, match=f"LATENTKV_ISA: expected one of {listed}, got 'avx1024'"):
            call()


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def test_asking_needs_no_torch() -> None:
    code = "import sys; from latentkv.backends import isa; print(isa.active_isa(), 'torch' in sys.modules)"
    assert run(code).endswith(" False")


def test_without_the_extension_there_are_none_and_the_reason_is_told() -> None:
    code = """
import sys
sys.modules["latentkv._native"] = None
from latentkv.backends import isa
print(isa.available_isas(), isa.active_isa(), isa.cpu_flags(), isa.native_missing())
"""
    assert run(code).startswith("() none () the extension latentkv._native cannot be loaded")
