"""`latentkv bench serve` against a real server in another process; what it refuses, it refuses before it starts one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from latentkv.bench.load.served import serving
from support.command_line import Run, assert_one_sentence

SMALL = ("--lengths", "12/6", "--vocabulary", "256", "--warm-up", "1")


def test_a_model_is_served_and_measured(run: Run, tiny_folder: Path, tmp_path: Path) -> None:
    picture = tmp_path / "loads.png"
    with serving(str(tiny_folder), ["--cache-tokens", "1024", "--api-key", "secret"]) as served:
        common = ("bench", "serve", "--url", served.url, "--api-key", "secret", *SMALL)
        told = run(*common, "--concurrency", "1,3", "--requests", "4", "--slo", "ttft=60s", "--plot", picture, "--json")
        rates = run(*common, "--rate", "50", "--duration", "0.2", "--json", "--records")
        table = run(*common, "--requests", "2", "--text", Path(__file__), "--endpoint", "chat")
        keyless = run("bench", "serve", "--url", served.url)
        assert served.resident_bytes > 2**20
    assert told.exit_code == 0
    record = json.loads(told.stdout)
    assert [(load["load"], load["completed"], load["errors"]) for load in record["loads"]] == [
        ("1 at once", 4, {}),
        ("3 at once", 4, {}),
    ]
    for load in record["loads"]:
        assert load["output_tokens"] == 24
        assert load["prompt_tokens"] == 48
        assert load["good_share"] == 1
    assert picture.stat().st_size > 1000
    [load] = json.loads(rates.stdout)["loads"]
    assert load["rate"] == 50
    assert len(load["records"]) == load["requests"] > 0
    assert "time to first token" in table.stdout
    assert "2 at once" not in table.stdout
    assert_one_sentence(keyless, "/v1/models", "401")


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("--concurrency", "0"), "--concurrency"),
        (("--rate", "x"), "--rate"),
        (("--rate", "1", "--concurrency", "1"), "--concurrency or --rate"),
        (("--lengths", "5"), "--lengths"),
        (("--slo", "fast"), "--slo"),
        (("--endpoint", "chat"), "prompts of text"),
        (("--records",), "--json"),
        (("--url", "http://127.0.0.1:1", "model"), "MODEL"),
        (("--url", "http://127.0.0.1:1"), "a list of models"),
        (("no-such-folder/",), "a server that is ready"),
    ],
)
def test_what_cannot_be_measured_is_refused(run: Run, arguments: tuple[str, ...], word: str) -> None:
    assert_one_sentence(run("bench", "serve", *arguments), word)
