"""Facts about this machine and this installation that a bug report needs. Every probe that fails says so in words."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path

import latentkv
from latentkv import env

DEPENDENCIES = (
    "click",
    "gguf",
    "huggingface_hub",
    "jinja2",
    "numpy",
    "rich",
    "safetensors",
    "tokenizers",
    "torch",
    "transformers",
)
SHOWN_CPU_FLAGS = (
    "sse4_2",
    "avx",
    "f16c",
    "fma",
    "avx2",
    "avx512f",
    "avx512bw",
    "avx512vl",
    "avx512_bf16",
    "avx512_vnni",
)
ARM_CPU_FLAGS = ("asimd", "asimdhp", "asimddp", "bf16", "i8mm", "sve", "sve2")


def installation() -> dict[str, object]:
    """latentkv's version, commit and place, and the Python that runs it."""
    return {
        "latentkv": latentkv.__version__,
        "commit": git_commit(Path(latentkv.__file__).parent),
        "location": str(Path(latentkv.__file__).parent),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "platform": platform.platform(),
    }


def git_commit(folder: Path) -> str | None:
    """The commit of the checkout that the package runs from, "+changes" when it differs; None outside a checkout."""
    root = next((parent for parent in folder.parents if (parent / ".git").exists()), None)
    if root is None or not (root / "src" / "latentkv").is_dir():
        return None
    try:
        commit = _git(root, "rev-parse", "--short=12", "HEAD")
        changed = _git(root, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return None
    return f"{commit}+changes" if changed else commit


def cpu() -> dict[str, object]:
    """The processor's model, its cores, and those of its flags that matter for kernels."""
    fields = _colon_file(Path("/proc/cpuinfo"))
    flags = (fields.get("flags") or fields.get("Features") or "").split()
    return {
        "model": fields.get("model name") or platform.processor() or platform.machine(),
        "architecture": platform.machine(),
        "cores": os.cpu_count(),
        "usable_cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "flags": [flag for flag in (*SHOWN_CPU_FLAGS, *ARM_CPU_FLAGS) if flag in flags],
    }


def memory_bytes() -> dict[str, int | None]:
    """Total and available memory in bytes; None where the system does not say."""
    fields = _colon_file(Path("/proc/meminfo"))
    return {"total_bytes": _kib(fields.get("MemTotal")), "available_bytes": _kib(fields.get("MemAvailable"))}


def torch_facts() -> dict[str, object]:
    """torch's version and threads, or why it cannot be imported."""
    try:
        import torch
    except (ImportError, OSError) as error:
        return {"problem": f"torch cannot be imported: {error}"}
    return {
        "version": torch.__version__,
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
    }


def native_facts() -> dict[str, object]:
    """Instruction sets of the native extension: built and usable, in use; or why there are none."""
    from latentkv.backends import isa
    from latentkv.errors import LatentKVError

    reason = isa.native_missing()
    if reason:
        return {"problem": reason}
    try:
        active = isa.active_isa()
    except LatentKVError as error:
        return {"available": list(isa.available_isas()), "problem": str(error)}
    return {"available": list(isa.available_isas()), "active": active, "cpu_flags": list(isa.cpu_flags())}


def versions() -> dict[str, str | None]:
    """Installed versions of the packages that latentkv uses; None for one that is absent."""
    return {name: _version(name) for name in DEPENDENCIES}


def variables() -> dict[str, str]:
    """The environment variables of latentkv that are set."""
    return {variable.name: os.environ[variable.name] for variable in env.VARIABLES if variable.name in os.environ}


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _git(root: Path, *arguments: str) -> str:
    command = ["git", "-C", str(root), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()


def _colon_file(path: Path) -> dict[str, str]:
    """The first value of each `name: value` line."""
    try:
        lines = path.read_text("utf-8", errors="replace").splitlines()
    except OSError:
        return {}
    fields: dict[str, str] = {}
    for line in lines:
        name, colon, value = line.partition(":")
        if colon:
            fields.setdefault(name.strip(), value.strip())
    return fields


def _kib(text: str | None) -> int | None:
    return int(text.split()[0]) * 1024 if text else None
