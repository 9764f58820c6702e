"""A server of our own in another process, for as long as it is measured. Knows the command line and HTTP, no engine."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from latentkv.errors import OptionError, sentence

HOST = "127.0.0.1"
START_SECONDS = 600.0
# Waits for its end, of POLL_SECONDS each; none passes while both processes are stopped from outside.
STOP_POLLS = 400
POLL_SECONDS = 0.1
# The Python program is the one that runs now, so that no other version of the package is measured.
COMMAND = (sys.executable, "-c", "from latentkv.cli.main import main; main()", "serve")


@dataclass(frozen=True)
class Served:
    """A server that answers at `url`; `process` is its own."""

    url: str
    process: subprocess.Popen[bytes]

    @property
    def resident_bytes(self) -> int:
        """Memory of the process that is in RAM now. Linux only."""
        with open(f"/proc/{self.process.pid}/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@contextmanager
def serving(
    model: str | None, options: Sequence[str] = (), *, environment: dict[str, str] | None = None
) -> Iterator[Served]:
    """`latentkv serve MODEL OPTIONS` on a free port, ready; ended by SIGTERM.

    Raises OptionError with the last line it wrote when it does not become ready.
    """
    port = _free_port()
    arguments = [*COMMAND, *([model] if model else []), "--host", HOST, "--port", str(port), *options]
    with tempfile.TemporaryFile() as log:
        # In a session of its own, so that Ctrl-C reaches it from here, after the requests were ended.
        process = subprocess.Popen(
            arguments, stdout=log, stderr=log, start_new_session=True, env={**os.environ, **(environment or {})}
        )
        served = Served(f"http://{HOST}:{port}", process)
        try:
            if not _becomes_ready(served):
                log.seek(0)
                said = log.read().decode("utf-8", "replace").strip().splitlines() or ["nothing"]
                raise OptionError(sentence("latentkv serve", expected="a server that is ready", got=said[-1]))
            yield served
        finally:
            _end(process)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def _becomes_ready(served: Served) -> bool:
    limit = time.monotonic() + START_SECONDS
    while time.monotonic() < limit and served.process.poll() is None:
        try:
            with urllib.request.urlopen(f"{served.url}/ready", timeout=5):
                return True
        except (urllib.error.URLError, OSError):
            time.sleep(POLL_SECONDS)
    return False


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is not None:
        return
    process.send_signal(signal.SIGTERM)
    for _ in range(STOP_POLLS):
        try:
            process.wait(POLL_SECONDS)
        except subprocess.TimeoutExpired:
            continue
        return
    process.kill()
    process.wait()
