"""Does HTTP stay responsive while a long prompt is computed? Latency of /health during one prefill, as JSON.

The server runs in a process of its own with a random model of 198M parameters; this process asks for one completion of
a long prompt and for /health every 10 ms until it is answered.

    python benchmarks/server_health.py [--prompt 16000] [--max-batch-tokens 512] [--threads 2]
"""

from __future__ import annotations

import argparse
import functools
import json
import subprocess
import sys
import threading
import time

import httpx


def serve(port: int, threads: int, batch_tokens: int) -> None:
    """The server process."""
    import torch

    from latentkv.backends.kernels import choose_kernels
    from latentkv.bench.random_model import CONFIG, RandomSource
    from latentkv.engine.engine import Engine
    from latentkv.models.config import ModelConfig
    from latentkv.models.model import Model
    from latentkv.models.step import Execution
    from latentkv.server import run
    from latentkv.server.options import ServerOptions

    torch.set_num_threads(threads)

    def load() -> Engine:
        config = {**CONFIG, "max_position_embeddings": 32768}
        model = Model.read(
            RandomSource(config),
            ModelConfig.from_dict(config),
            dtype=torch.float32,
            keep_stored=True,
            execution=Execution(choose_kernels()),
        )
        return Engine(model, cache_tokens=20480, max_batch_tokens=batch_tokens)

    options = ServerOptions(model_names=("random",))
    run.run(load, options, run.listen("127.0.0.1", port), announce=lambda: None)


def measure(url: str, prompt_tokens: int, most_seconds: float) -> dict[str, float]:
    """Latencies of /health in milliseconds while a prompt of that length is prefilled, or its first `most_seconds`."""
    body = {"model": "random", "prompt": [7 + i % 30000 for i in range(prompt_tokens)], "max_tokens": 1}
    answers: list[httpx.Response] = []
    ask = functools.partial(httpx.post, f"{url}/v1/completions", json=body, timeout=600)
    asking = threading.Thread(target=lambda: answers.append(ask()), daemon=True)
    begin = time.perf_counter()
    latencies: list[float] = []
    with httpx.Client() as client:
        client.get(f"{url}/health")
        asking.start()
        while asking.is_alive() and time.perf_counter() - begin < most_seconds:
            asked = time.perf_counter()
            client.get(f"{url}/health").raise_for_status()
            latencies.append(1e3 * (time.perf_counter() - asked))
            time.sleep(0.01)
        in_step = client.get(f"{url}/health").json()["seconds_in_step"]
        computed = client.get(f"{url}/status").json()["tokens"]["prefill"]
    for answer in answers:
        answer.raise_for_status()
    latencies.sort()
    quantiles = {f"p{share}_ms": round(latencies[int(len(latencies) * share / 100)], 2) for share in (50, 90, 99)}
    about = {"prefilled_tokens": computed, "seconds_in_step": in_step}
    return {**about, "seconds": round(time.perf_counter() - begin, 1), "asked": len(latencies), **quantiles} | {
        "max_ms": round(latencies[-1], 2)
    }


def main() -> None:
    """Start the server, measure, end it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompt", type=int, default=16000)
    parser.add_argument("--seconds", type=float, default=600.0, help="stop after this long")
    parser.add_argument("--max-batch-tokens", type=int, default=512)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--port", type=int, default=8917)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.port, options.threads, options.max_batch_tokens)
        return
    server = subprocess.Popen([sys.executable, __file__, "--serve", *sys.argv[1:]])
    try:
        url = f"http://127.0.0.1:{options.port}"
        _wait_until_ready(url)
        print(json.dumps({"prompt_tokens": options.prompt, **measure(url, options.prompt, options.seconds)}))
    finally:
        # Twice: the prompt need not be finished.
        server.terminate()
        server.terminate()
        server.wait(60)


def _wait_until_ready(url: str) -> None:
    for _ in range(600):
        try:
            if httpx.get(f"{url}/ready").status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.2)
    raise SystemExit("the server did not become ready")


if __name__ == "__main__":
    main()
