"""A local Ray cluster that adds a replica under load and stops it again, with the same answers all the time."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from support.ray_serving import ask_all, ray_server
from support.tiny_chat import save_chat_model

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
REQUESTS = 24
PATIENCE_S = 240


def replicas_running() -> int:
    """Replicas that take requests, as Ray tells it."""
    from ray import serve

    return serve.status().applications["default"].deployments["Replica"].replica_states.get("RUNNING", 0)


def wait_for(replicas: int) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while replicas_running() != replicas:
        assert time.monotonic() < deadline, f"there are {replicas_running()} replicas, not {replicas}"
        time.sleep(0.5)


def test_a_replica_comes_under_load_and_goes_after_it(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    folder = save_chat_model(tmp_path / "model", context=1024)
    scaling = {"most_replicas": 2, "requests_per_replica": 4, "scale_up_after_s": 1, "scale_down_after_s": 5}
    with ray_server(folder, replicas=1, **scaling) as url:
        before = ask_all(url, 1)
        assert replicas_running() == 1
        answers, deadline = [ask_all(url, REQUESTS)], time.monotonic() + PATIENCE_S
        # Rounds of load without a pause, until both have answered in one of them.
        while len({answer.replica for answer in answers[-1]}) < 2 and time.monotonic() < deadline:
            answers.append(ask_all(url, REQUESTS))
        assert {answer.replica for answer in answers[0]} == {before[0].replica}
        assert len({answer.replica for answer in answers[-1]}) == 2
        assert all(answer.whole for round_ in answers for answer in round_)
        texts = [[answer.text for answer in round_] for round_ in answers]
        assert all(round_ == texts[0] for round_ in texts)
        wait_for(1)
        assert ask_all(url, 1)[0].text == before[0].text
