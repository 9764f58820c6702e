"""What a build tells a user who lacks something, and what must not be in the object files."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SENTENCE = "latentkv needs a C++20 compiler (g++ 12 or clang 15 or newer); on Debian or Ubuntu: apt install g++"
KERNEL_FILES = sorted(path.name for path in (ROOT / "csrc" / "kernels").glob("*.cpp"))
# A width and what else tells the code of one instruction set from that of another.
KINDS = {"four": ["-DLATENTKV_WIDTH=4"], "eight": ["-DLATENTKV_WIDTH=8"]} | {
    name: ["-DLATENTKV_WIDTH=16", *more] for name, more in {"sixteen": [], "tile": ["-DLATENTKV_PLAIN_TILES"]}.items()
}


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
    assert {"attention.cpp", "linear.cpp", "table.cpp"} <= set(KERNEL_FILES)


@pytest.mark.skipif(shutil.which("g++") is None or shutil.which("nm") is None, reason="needs g++ and nm")
@pytest.mark.parametrize("kind", KINDS)
def test_one_instruction_sets_kernels_share_no_function_with_anothers(kind: str, tmp_path: Path) -> None:
    """Of two weak functions of one name the linker keeps one, perhaps in instructions that this CPU lacks.

    Compiled without optimisation, so that every function is in the object files.
    """
    flags = ["-std=c++20", "-O0", "-fopenmp", "-fno-exceptions", "-Wno-psabi", "-I", str(ROOT / "csrc")]
    flags += [f"-DLATENTKV_ISA={kind}", *KINDS[kind]]
    found = []
    for file in KERNEL_FILES:
        target = tmp_path / f"{file}.o"
        subprocess.run(["g++", *flags, "-c", str(ROOT / "csrc" / "kernels" / file), "-o", str(target)], check=True)
        listing = subprocess.run(["nm", "-C", str(target)], capture_output=True, text=True, check=True).stdout
        found += [line for line in listing.splitlines() if line[17:18] in "WVu"]
    assert found, "expected template instances"
    assert [line for line in found if f"latentkv::{kind}::" not in line] == []
