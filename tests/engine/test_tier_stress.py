"""Tiers under random traffic, kill -9 and damage: never a wrong token (the work is done by tier_stress.py)."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from tier_stress import make, serve

from latentkv.cache.layout import FORMATS

SCRIPT = Path(__file__).with_name("tier_stress.py")


@pytest.mark.parametrize("format", FORMATS)
def test_random_traffic_over_every_tier_in_every_format(format: str, tmp_path: Path) -> None:
    engine = make(tmp_path, format)
    stats = serve(engine, requests=25, chance=random.Random(1))
    assert stats.preemptions > 0
    assert stats.swapped_out_pages > 0
    assert stats.host_hit_tokens + stats.disk_hit_tokens > 0
    assert stats.restored_tokens > 0
    assert stats.checksum_failures == 0
    engine.close()


def kills(folder: Path, format: str, *, rounds: int, seed: int) -> None:
    paths = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, str(SCRIPT), str(folder), format, str(rounds), str(seed)]
    done = subprocess.run(command, env=paths, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{rounds} kills, every token right" in done.stdout


def test_kills_and_damage_never_give_a_wrong_token(tmp_path: Path) -> None:
    kills(tmp_path, "int8", rounds=3, seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("seed", range(2))
def test_many_kills_and_much_damage_never_give_a_wrong_token(format: str, seed: int, tmp_path: Path) -> None:
    kills(tmp_path, format, rounds=30, seed=seed)


@pytest.mark.slow
def test_long_random_traffic(tmp_path: Path) -> None:
    engine = make(tmp_path, "int4")
    for seed in range(20):
        serve(engine, requests=100, chance=random.Random(seed))
    engine.close()
