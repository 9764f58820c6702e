"""The waiting of OpenMP's threads, as the OpenMP library itself tells it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from latentkv.cli.spinning import SPINS, limit_spinning

COMMAND = "from latentkv.cli.main import main; main(['doctor'])"


def displayed(**environ: str) -> str:
    """What OpenMP says of its settings when a command of ours loads it."""
    inherited = {name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    run = subprocess.run(
        [sys.executable, "-c", COMMAND],
        env=inherited | {"OMP_DISPLAY_ENV": "verbose"} | environ,
        capture_output=True,
        text=True,
        check=False,
    )
    return run.stderr


def test_our_commands_wait_briefly() -> None:
    said = displayed()
    if "GOMP_SPINCOUNT" not in said:
        pytest.skip("torch's OpenMP is not GNU's")
    assert f"GOMP_SPINCOUNT = '{SPINS}'" in said


def test_the_users_choice_stands() -> None:
    for chosen in ({"GOMP_SPINCOUNT": "7"}, {"OMP_WAIT_POLICY": "passive"}):
        environ = dict(chosen)
        limit_spinning(environ)
        assert environ == chosen
