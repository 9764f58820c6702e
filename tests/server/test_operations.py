"""What an operator relies on: cancellation, overload, keys, limits, failures of the engine, and a clean end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

from latentkv.engine.engine import Engine
from support.live_server import MODEL, Live, loader, serving

LONG = {"model": MODEL, "prompt": "a long one", "max_tokens": 12_000, "temperature": 0, "ignore_eos": True}
SHORT = {"model": MODEL, "prompt": "short", "max_tokens": 4, "temperature": 0}


def until(condition: Any, what: str) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain: {what}"
        time.sleep(0.02)


def running(live: Live) -> int:
    return int(live.on_engine(lambda engine: engine.stats().running))


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
def test_a_client_that_goes_away_frees_its_pages(live: Live, stream: bool) -> None:
    aborted = 'latentkv_requests_total{finish_reason="abort"}'
    with httpx.Client(timeout=60) as client:
        before = live.metric(aborted) if aborted in live.get("/metrics").text else 0.0
        if stream:
            with client.stream("POST", f"{live.url}/v1/completions", json=LONG | {"stream": True}) as answer:
                lines = answer.iter_lines()
                next(lines)
                assert running(live) == 1
        else:
            with pytest.raises(httpx.ReadTimeout):
                client.post(f"{live.url}/v1/completions", json=LONG, timeout=0.3)
    live.wait_until_idle()
    assert live.metric(aborted) == before + 1
    assert live.context.service.live_choices == 0


def test_overload_is_told_with_a_time_to_come_back(tool_model: Path) -> None:
    with serving(loader(tool_model, max_batch_sequences=1), max_queue=1) as live:
        gone = threading.Event()
        streams = [threading.Thread(target=hold_a_stream, args=(live, gone)) for _ in range(2)]
        for stream in streams:
            stream.start()
        until(lambda: live.context.service.live_choices == 2, "two live requests")
        answer = live.post("/v1/completions", SHORT)
        assert answer.status_code == 429
        assert int(answer.headers["retry-after"]) >= 1
        assert answer.json()["error"]["code"] == "queue_full"
        assert live.post("/v1/completions", SHORT | {"n": 3}).status_code == 400
        gone.set()
        for stream in streams:
            stream.join()
        live.wait_until_idle()
        assert live.post("/v1/completions", SHORT).status_code == 200


def hold_a_stream(live: Live, gone: threading.Event) -> None:
    with httpx.stream("POST", f"{live.url}/v1/completions", json=LONG | {"stream": True}, timeout=60) as answer:
        for _ in answer.iter_lines():
            if gone.wait(0.05):
                return


def test_keys(tool_model: Path) -> None:
    with serving(loader(tool_model), api_keys=("one", "two"), admin_keys=("boss",)) as live:
        for headers in ({}, {"Authorization": "Bearer no"}, {"Authorization": "one"}, {"Authorization": "Bearer"}):
            answer = live.post("/v1/completions", SHORT, headers=headers)
            assert answer.status_code == 401
            assert answer.json()["error"]["code"] == "invalid_api_key"
            assert answer.headers["www-authenticate"] == "Bearer"
        for key in ("one", "two", "boss"):
            assert live.post("/v1/completions", SHORT, headers={"Authorization": f"Bearer {key}"}).status_code == 200
        assert live.post("/tokenize", {"prompt": "x"}).status_code == 401
        assert live.get("/v1/models").status_code == 401
        assert [live.get(path).status_code for path in ("/health", "/ready", "/metrics", "/docs")] == [200] * 4
        assert live.get("/admin/backend", headers={"Authorization": "Bearer one"}).status_code == 401
        assert live.get("/admin/backend", headers={"Authorization": "Bearer boss"}).status_code == 404


def test_a_key_with_a_long_queue_does_not_hold_up_another_one(tool_model: Path) -> None:
    many = {"model": MODEL, "prompt": ["wait"] * 20, "max_tokens": 20, "temperature": 0, "ignore_eos": True}
    with serving(loader(tool_model, max_batch_sequences=1), api_keys=("one", "two")) as live:
        one, two = ({"Authorization": f"Bearer {key}"} for key in ("one", "two"))
        crowd = threading.Thread(target=live.post, args=("/v1/completions", many), kwargs={"headers": one})
        crowd.start()
        until(lambda: live.context.service.live_choices == 20, "a crowd")
        assert live.post("/v1/completions", SHORT | {"user": "x"}, headers=two).status_code == 200
        assert crowd.is_alive()
        crowd.join()
        live.wait_until_idle()


def test_kernels_that_fall_back_are_counted(tool_model: Path) -> None:
    pytest.importorskip("latentkv._native")

    def norm_in_float16(engine: Engine) -> None:
        engine.model.execution.kernels.rms_norm(torch.ones(1, 8, dtype=torch.float16), torch.ones(8), eps=1e-6)

    with serving(loader(tool_model)) as live:
        assert live.post("/v1/completions", SHORT).status_code == 200
        assert "latentkv_kernel_fallbacks_total{" not in live.get("/metrics").text
        live.on_engine(norm_in_float16)
        dtype = "x: no native kernel for this dtype"
        assert live.metric(f'latentkv_kernel_fallbacks_total{{op="rms_norm",reason="{dtype}"}}') == 1


def test_admin_needs_a_key_to_exist(live: Live) -> None:
    assert live.get("/admin/backend").status_code == 403


def test_bodies_have_a_limit(tool_model: Path) -> None:
    with serving(loader(tool_model), max_body_bytes=1000) as live:
        assert live.post("/v1/completions", SHORT | {"prompt": "x" * 1000}).status_code == 413
        pieces = iter([b'{"model": "', b"x" * 2000, b'"}'])
        answer = httpx.post(f"{live.url}/v1/completions", content=pieces, headers={"Content-Type": "application/json"})
        assert answer.status_code == 413
        assert live.post("/v1/completions", SHORT).status_code == 200


def test_a_request_has_a_time_limit(tool_model: Path) -> None:
    with serving(loader(tool_model), request_timeout_s=0.3) as live:
        answer = live.post("/v1/completions", LONG)
        assert answer.status_code == 504
        assert answer.json()["error"]["code"] == "timeout"
        with httpx.stream("POST", f"{live.url}/v1/completions", json=LONG | {"stream": True}, timeout=60) as stream:
            lines = [line for line in stream.iter_lines() if line]
        assert json.loads(lines[-1].removeprefix("data: "))["error"]["code"] == "timeout"
        live.wait_until_idle()


def test_a_failed_step_ends_its_requests_and_no_others(tool_model: Path) -> None:
    with serving(loader(tool_model)) as live:
        engine: Engine = live.on_engine(lambda engine: engine)
        step = engine.step

        def fail() -> Any:
            engine.step = step
            raise RuntimeError("a kernel gave up")

        live.on_engine(lambda engine: setattr(engine, "step", fail))
        answer = live.post("/v1/completions", SHORT)
        assert answer.status_code == 500
        assert answer.json()["error"]["code"] == "engine_error"
        assert live.post("/v1/completions", SHORT).status_code == 200
        assert live.get("/health").status_code == 200
        live.wait_until_idle()


def test_a_dead_engine_is_told(tool_model: Path) -> None:
    class Death(BaseException):
        pass

    def die(_: Engine) -> None:
        raise Death

    with pytest.raises(Death), serving(loader(tool_model)) as live:  # noqa: PT012 (the end of the server raises)
        live.context.service.thread._commands.put(die)
        until(lambda: live.get("/health").status_code == 503, "a health that tells")
        assert live.get("/health").json()["engine"] == "dead"
        assert live.get("/ready").status_code == 503
        assert live.post("/v1/completions", SHORT).json()["error"]["code"] == "engine_dead"
        live.server.should_exit = True
        raise live.context.service.thread.failure  # type: ignore[misc]


def test_request_ids(live: Live) -> None:
    assert live.get("/health", headers={"X-Request-Id": "mine-1"}).headers["x-request-id"] == "mine-1"
    odd = live.get("/health", headers={"X-Request-Id": "not a word"}).headers["x-request-id"]
    assert odd != "not a word"
    both = [live.post("/v1/completions", SHORT, headers={"X-Request-Id": "same"}).status_code for _ in range(2)]
    assert both == [200, 200]


def test_metrics_count(live: Live) -> None:
    live.post("/v1/completions", SHORT | {"prompt": "something to count"})
    text = live.get("/metrics").text
    for name in (
        "time_to_first_token_seconds_count",
        "inter_token_latency_seconds_count",
        "e2e_request_latency_seconds_count",
        "request_queue_time_seconds_count",
        "step_seconds_count",
        "batch_tokens_count",
        "num_requests_waiting",
        "num_requests_running",
        "preemptions_total",
        "prefix_cache_queries_total",
        "prefix_cache_hits_total",
        "prompt_tokens_total",
        "generation_tokens_total",
        'pages{state="free"}',
        'cache_bytes{tier="host"}',
        'requests_total{finish_reason="length"}',
        'model_info{format="bf16",geometry="mla",model="tiny"} 1.0',
    ):
        assert f"\nlatentkv_{name}" in text
    assert live.metric("latentkv_time_to_first_token_seconds_count") > 0
    assert live.metric('latentkv_pages{state="cached"}') + live.metric('latentkv_pages{state="free"}') == 256


def test_status_tells_the_load(live: Live) -> None:
    live.post("/v1/completions", SHORT)
    told = live.get("/status").json()
    assert told["state"] == "serving"
    assert told["requests"]["running"] == 0
    assert sum(told["pages"].values()) == 256
    assert told["latency_ms"]["request"]["p50"] > 0
    assert told["speed"]["decode_tokens_per_second"] > 0


def serve_in_a_process(folder: Path, *options: str) -> tuple[subprocess.Popen[str], str]:
    code = "import sys; sys.argv[0] = 'latentkv'; from latentkv.cli.main import main; main()"
    command = [sys.executable, "-c", code, "serve", str(folder), "--port", "0", "--model-name", MODEL, *options]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "LATENTKV_API_KEY": "secret"}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    assert process.stderr is not None
    for line in process.stderr:
        if "ready on " in line:
            return process, line.split("ready on ")[1].split("/v1")[0]
    raise AssertionError("the server ended before it was ready")


def test_the_first_signal_lets_requests_finish(tool_model: Path) -> None:
    process, url = serve_in_a_process(tool_model, "--log-json", "--shutdown-timeout", "60")
    key = {"Authorization": "Bearer secret"}
    asked = LONG | {"stream": True, "max_tokens": 600}
    with httpx.stream("POST", f"{url}/v1/completions", json=asked, headers=key, timeout=60) as stream:
        lines = stream.iter_lines()
        next(lines)
        process.send_signal(signal.SIGTERM)
        until(lambda: httpx.get(f"{url}/ready").status_code == 503, "a server that drains")
        assert httpx.get(f"{url}/health").status_code == 200
        refused = httpx.post(f"{url}/v1/completions", json=SHORT, headers=key)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "shutting_down")
        rest = [line for line in lines if line]
    assert rest[-1] == "data: [DONE]"
    assert json.loads(rest[-2].removeprefix("data: "))["choices"][0]["finish_reason"] == "length"
    _, told = process.communicate(timeout=60)
    assert process.returncode == 0
    logged = [json.loads(line) for line in told.splitlines() if line.startswith("{")]
    assert any(line.get("path") == "/v1/completions" and line.get("request_id") for line in logged)


def test_requests_that_take_too_long_are_told_at_the_end(tool_model: Path) -> None:
    with serving(loader(tool_model), shutdown_timeout_s=0.1) as live:
        with httpx.stream("POST", f"{live.url}/v1/completions", json=LONG | {"stream": True}, timeout=60) as stream:
            lines = stream.iter_lines()
            next(lines)
            live.server.handle_exit(signal.SIGTERM, None)
            rest = [line for line in lines if line]
        assert json.loads(rest[-1].removeprefix("data: "))["error"]["code"] == "shutting_down"


def test_the_second_signal_is_immediate(tool_model: Path) -> None:
    process, url = serve_in_a_process(tool_model)
    with httpx.stream(
        "POST", f"{url}/v1/completions", json=LONG | {"stream": True}, headers={"Authorization": "Bearer secret"}
    ) as stream:
        # A forgotten iterator would close the connection.
        lines = stream.iter_lines()
        next(lines)
        process.send_signal(signal.SIGTERM)
        until(lambda: httpx.get(f"{url}/ready").status_code == 503, "a server that drains")
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=10)
    assert process.returncode == 128 + signal.SIGTERM


def test_a_model_that_cannot_be_loaded_ends_the_server(tmp_path: Path) -> None:
    code = "import sys; sys.argv[0] = 'latentkv'; from latentkv.cli.main import main; main()"
    command = [sys.executable, "-c", code, "serve", str(tmp_path), "--port", "0", "--log-level", "error"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("latentkv: ")
    assert "Traceback" not in done.stderr
