"""What a build tells a user who lacks something, and what must not be in the object files."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SENTENCE = "latentkv needs a C++20 compiler (g++ 12 or clang 15 or newer); on Debian or Ubuntu: apt install g++"
ISA_FILES = sorted(path.name for path in (ROOT / "csrc").glob("isa_*.cpp"))


@pytest.mark.skipif(shutil.which("cmake") is None, reason="needs cmake")
def test_a_missing_compiler_is_one_sentence(tmp_path: Path) -> None:
    environment = {**os.environ, "CXX": str(tmp_path / "no-such-compiler")}
    command = ["cmake", "-S", str(ROOT), "-B", str(tmp_path / "build")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    told = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    assert SENTENCE in told
    assert "CMAKE_CXX_COMPILER" not in done.stderr
    assert len(told) <= 3


def test_there_are_files_to_look_into() -> None:
    assert "isa_baseline.cpp" in ISA_FILES
    assert "isa_avx512.cpp" in ISA_FILES


@pytest.mark.skipif(shutil.which("g++") is None or shutil.which("nm") is None, reason="needs g++ and nm")
@pytest.mark.parametrize("file", ISA_FILES)
def test_an_instruction_sets_file_shares_no_function_with_others(file: str, tmp_path: Path) -> None:
    """Of two weak functions of one name the linker keeps one, perhaps in instructions that this CPU lacks.

    Compiled without optimisation, so that every function is in the object file.
    """
    target = tmp_path / "isa.o"
    flags = ["-std=c++20", "-O0", "-fopenmp", "-fno-exceptions", "-Wno-psabi", "-I", str(ROOT / "csrc")]
    subprocess.run(["g++", *flags, "-c", str(ROOT / "csrc" / file), "-o", str(target)], check=True)
    listing = subprocess.run(["nm", "-C", str(target)], capture_output=True, text=True, check=True).stdout
    weak = [line for line in listing.splitlines() if line[17:18] in "WVu"]
    namespace = f"latentkv::{file.removeprefix('isa_').removesuffix('.cpp')}::"
    assert weak, "expected template instances"
    assert [line for line in weak if namespace not in line] == []
