"""`latentkv serve` before it serves: what it refuses in one sentence."""

from __future__ import annotations

import socket

import pytest

import latentkv.cli.serve
from support.command_line import Run, assert_one_sentence


def test_without_the_extra(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latentkv.cli.serve, "NEEDED", ("no_such_package",))
    assert_one_sentence(run("serve"), "no_such_package", "pip install 'latentkv[serve]'")


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (("--max-queue", "-1"), "max_queue"),
        (("--request-timeout", "-1"), "request_timeout_s"),
        (("--max-body", "many"), "--max-body"),
        (("--api-key", ""), "api_keys"),
        (("--shadow", "portable"), "shadow"),
    ],
)
def test_values_outside_their_range(run: Run, options: tuple[str, ...], named: str) -> None:
    pytest.importorskip("fastapi")
    assert_one_sentence(run("serve", *options), named)


def test_an_address_in_use(run: Run) -> None:
    pytest.importorskip("fastapi")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert_one_sentence(run("serve", "--port", str(port)), f"127.0.0.1:{port}")
