"""Twenty seconds of benchmarks/soak.py: cancellations, nonsense, a failing backend, few pages, and right answers."""

from __future__ import annotations

import argparse
import runpy
from pathlib import Path

import pytest

SOAK = Path(__file__).parents[2] / "benchmarks" / "soak.py"


@pytest.mark.slow
def test_a_server_under_everything_that_goes_wrong() -> None:
    run = runpy.run_path(str(SOAK))["run"]
    record = run(argparse.Namespace(minutes=1 / 3, clients=8, model=None, seed=0))
    assert record["problems"] == []
    assert record["answers_compared"] > 20
    assert record["failures"]
    assert set(record["statuses"]) <= {"200", "400", "422", "429"}
