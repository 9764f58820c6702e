"""A real server process whose backend fails: answers stay the same, /metrics tells, and an operator switches."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi")

TESTS = Path(__file__).parents[1]
CODE = "import sys; sys.argv[0] = 'latentkv'; from latentkv.cli.main import main; main()"
KEY = "an-operator"
PROMPTS = ("one", "a longer prompt than that", "zzz")


class Server:
    """One `latentkv serve` process and its address."""

    def __init__(self, process: subprocess.Popen[str], url: str) -> None:
        self.process = process
        self.url = url

    def ask(self, path: str, body: dict[str, Any] | None = None, *, key: str | None = None) -> tuple[int, Any]:
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
        data = json.dumps(body).encode() if body is not None else None
        try:
            with urllib.request.urlopen(urllib.request.Request(self.url + path, data, headers), timeout=60) as answer:
                return answer.status, read(answer.read())
        except urllib.error.HTTPError as error:
            return error.code, read(error.read())

    def complete(self, prompt: str) -> str:
        body = {"model": "tiny", "prompt": prompt, "max_tokens": 20, "temperature": 0}
        status, answer = self.ask("/v1/completions", body)
        assert status == 200, answer
        return answer["choices"][0]["text"]

    def metric(self, name: str) -> dict[str, float]:
        found = re.findall(rf"^latentkv_{name}(\{{.*\}})? (\S+)$", self.ask("/metrics")[1], re.MULTILINE)
        return {labels: float(value) for labels, value in found}


def read(body: bytes) -> Any:
    try:
        return json.loads(body)
    except ValueError:
        return body.decode()


@contextmanager
def serving(folder: Path, *options: str, **environment: str) -> Iterator[Server]:
    command = [sys.executable, "-c", CODE, "serve", str(folder), "--port", "0", "--model-name", "tiny", *options]
    path = os.pathsep.join([str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])])
    process = subprocess.Popen(
        [*command, "--log-level", "error"],
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"} | environment,
    )
    assert process.stderr is not None
    try:
        for line in process.stderr:
            ready = re.search(r"ready on (http://\S+)/v1", line)
            if ready:
                yield Server(process, ready.group(1))
                break
        else:
            pytest.fail("the server ended before it was ready")
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
    assert process.returncode == 0


def test_a_failing_backend_in_service(tiny_folder: Path, tmp_path: Path) -> None:
    with serving(tiny_folder, "--backend", "portable") as server:
        expected = [server.complete(prompt) for prompt in PROMPTS]
        assert server.ask("/admin/backend")[0] == 403
    options = ["--backend-plugin", "support.failing_backend:make", "--backend", "failing", "--admin-key", KEY]
    options += ["--backend-failures", "1000", "--shadow", "portable:1", "--dump-dir", str(tmp_path / "dumps")]
    with serving(tiny_folder, *options, FAILING_BACKEND="nan", FAILING_EVERY="3") as server:
        assert [server.complete(prompt) for prompt in PROMPTS] == expected
        failures = server.metric("backend_failures_total")
        assert list(failures) == ['{backend="failing",reason="non-finite"}']
        assert failures.popitem()[1] >= 10
        assert server.metric("backend_replaced_steps_total")
        assert server.metric("backend_state")['{backend="failing"}'] == 0
        assert server.metric("shadow_steps_total")[""] >= 40
        assert server.metric("shadow_mismatches_total")[""] == 0
        assert server.metric("shadow_lse_error_bucket")['{le="+Inf"}'] == server.metric("shadow_calls_total")[""]
        switch_by_hand(server)
        assert [server.complete(prompt) for prompt in PROMPTS] == expected
        assert server.metric("backend_failures_total")['{backend="failing",reason="non-finite"}'] >= 10


def switch_by_hand(server: Server) -> None:
    """Every action, and what is refused."""
    path = "/admin/backend"
    assert server.ask(path)[0] == 401
    assert server.ask(path, key="somebody")[0] == 401
    status, state = server.ask(path, key=KEY)
    assert status == 200
    assert state["preferred"] == "failing"
    assert state["active"] == "failing"
    assert state["events"][0]["replaced_by"] is not None
    assert server.ask(path, {"backend": "failing", "action": "disable"}, key=KEY)[1]["backends"]["failing"] == "off"
    assert server.metric("backend_state")['{backend="failing"}'] == 3
    assert server.ask(path, {"backend": "failing", "action": "enable"}, key=KEY)[1]["backends"]["failing"] == "closed"
    assert server.ask(path, {"backend": "portable"}, key=KEY)[1]["active"] == "portable"
    for wrong in ({"backend": "flash"}, {"backend": "portable", "action": "x"}, {"name": "portable"}, {}):
        status, answer = server.ask(path, wrong, key=KEY)
        assert status == 400
        assert answer["error"]["param"] in ("backend", "action", "name")


def test_options_that_do_not_fit_are_refused(run: Any, tiny_folder: Path) -> None:
    for options, part in (
        (["--backend", "flash"], "backend: expected auto or one of"),
        (["--shadow", "portable"], "BACKEND:SHARE"),
        (["--shadow", "portable:2"], "BACKEND:SHARE"),
        (["--shadow", "flash:0.5"], "backend: expected"),
        (["--dump-dir", "x"], "--shadow with it"),
        (["--backend-plugin", "nothing"], "module:factory"),
    ):
        result = run("serve", tiny_folder, *options)
        assert result.exit_code == 2
        assert part in result.stderr
