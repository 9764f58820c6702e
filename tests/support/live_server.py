"""A real server in this process: a small random model, the real engine thread, uvicorn on a free port."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import openai
import tokenizers

from latentkv.engine.engine import Engine
from latentkv.models.load import load_model
from latentkv.server import run
from latentkv.server.context import Context
from latentkv.server.engine_thread import Observer
from latentkv.server.options import ServerOptions
from support.tiny_models import Family, save_model

MODEL = "tiny"
TEMPLATE = (
    "{% if tools %}tools: {% for tool in tools %}{{ tool | tojson }}{% endfor %} answer with <tool_call>\n{% endif %}"
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}"
    "{% for call in message.tool_calls or [] %}<tool_call>{{ call.function | tojson }}</tool_call>{% endfor %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_FIELDS = {
    "vocab_size": 264,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 16384,
    "pad_token_id": None,
}


def save_tool_model(folder: Path) -> Path:
    """A byte-level model whose template shows tools and which has an end of text; the folder again."""
    save_model(Family("llama with tools", "Llama", _FIELDS), folder)
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    backend = tokenizers.Tokenizer(tokenizers.models.BPE({byte: i for i, byte in enumerate(alphabet)}, []))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    backend.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    backend.save(str(folder / "tokenizer.json"))
    settings = {"chat_template": TEMPLATE, "eos_token": "<|im_end|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def loader(folder: Path, **options: Any) -> Callable[[], Engine]:
    """Makes an engine over the model in `folder`."""

    def load() -> Engine:
        loaded = load_model(folder, dtype="float32")
        return Engine(loaded.model, loaded.tokenizer, **{"cache_tokens": 16384, "max_batch_tokens": 128, **options})

    return load


@dataclass(frozen=True)
class Live:
    """A running server."""

    url: str
    context: Context
    server: run.Server

    def client(self, **options: Any) -> openai.OpenAI:
        """The official client, without retries that would hide refusals."""
        return openai.OpenAI(base_url=f"{self.url}/v1", **{"api_key": "none", "max_retries": 0, **options})

    def post(self, path: str, body: Any, **options: Any) -> httpx.Response:
        """POST a JSON body."""
        return httpx.post(f"{self.url}{path}", json=body, timeout=60, **options)

    def get(self, path: str, **options: Any) -> httpx.Response:
        """GET a path."""
        return httpx.get(f"{self.url}{path}", timeout=60, **options)

    def metric(self, line: str) -> float:
        """The number behind a metric's name and labels."""
        found = [text for text in self.get("/metrics").text.splitlines() if text.startswith(f"{line} ")]
        return float(found[0].split()[-1])

    def wait_until_idle(self) -> None:
        """Until no request lives in the engine; then its books have to agree."""
        deadline = time.monotonic() + 30
        while self.on_engine(lambda engine: engine.has_work):
            assert time.monotonic() < deadline, "the engine still has work"
            time.sleep(0.01)
        self.on_engine(lambda engine: engine.check())
        assert self.on_engine(lambda engine: engine.stats().held_pages) == 0

    def on_engine(self, function: Callable[[Engine], Any]) -> Any:
        """Call a function in the engine's thread, between two steps."""
        return self.context.service.thread.call(function).result(timeout=60)


@contextmanager
def serving(load: Callable[[], Engine], *, observers: Sequence[Observer] = (), **options: Any) -> Iterator[Live]:
    """A server until the end of the block; its end has to be clean."""
    settings = ServerOptions(**{"model_names": (MODEL,), "shutdown_timeout_s": 5.0, **options})
    context = run.make_context(load, settings, observers=observers)
    listening = run.listen("127.0.0.1", 0)
    server = run.Server(context)
    ready = threading.Event()
    failures: list[BaseException] = []

    def main() -> None:
        try:
            asyncio.run(server.serve_until_told(listening, announce=ready.set))
        except BaseException as error:
            failures.append(error)
        ready.set()

    thread = threading.Thread(target=main)
    thread.start()
    try:
        assert ready.wait(60)
        if failures:
            raise failures[0]
        yield Live(f"http://127.0.0.1:{listening.getsockname()[1]}", context, server)
    finally:
        server.should_exit = True
        thread.join(60)
    assert not thread.is_alive()
    assert not failures
