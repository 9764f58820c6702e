"""One small model for all tests of the server, and one server for those that change nothing about it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("fastapi")

from support.live_server import Live, loader, save_tool_model, serving


@pytest.fixture(scope="session")
def tool_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tool_model(tmp_path_factory.mktemp("tool-model"))


@pytest.fixture(scope="session")
def live(tool_model: Path) -> Iterator[Live]:
    with serving(loader(tool_model)) as running:
        yield running
        running.wait_until_idle()
