"""docs/flash_mla.md: its example runs, and its tables hold every argument there is."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from latentkv.flash_mla import flash_mla_sparse_fwd, flash_mla_with_kvcache, get_mla_metadata

PAGE = (Path(__file__).parent.parent / "docs" / "flash_mla.md").read_text()


def test_the_example_runs() -> None:
    names: dict[str, object] = {}
    for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL):
        exec(block, names)
    assert isinstance(names["out"], torch.Tensor)
    assert names["out"].shape == (2, 1, 16, 512)


@pytest.mark.parametrize("call", [get_mla_metadata, flash_mla_with_kvcache, flash_mla_sparse_fwd])
def test_the_tables_name_every_argument(call: Callable[..., object]) -> None:
    section = PAGE.split(f"## {call.__name__}\n")[1].split("\n## ")[0]
    cells = " ".join(line.split("|")[1] for line in section.splitlines() if line.startswith("| `"))
    assert re.findall(r"`(\w+)`", cells) == list(inspect.signature(call).parameters)
