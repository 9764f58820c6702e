"""SmolLM2-135M end to end: prefill and decode from the MLA cache, in GQA's own form, and in transformers.

All run the same weights, in float32 or ("as stored") the 4-bit codes of the file, on the same threads and in turns, so
that what the machine does meanwhile hits them alike; the medians and their ratio count. Floor of one decoded token in
float32: 134.5M weights * 4 bytes over the read bandwidth, measured in the same process. The last line is JSON.

    python benchmarks/bench_generate.py [--repeats 5] [--context 1024] [--tokens 16]
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from latentkv import SamplingParams, load_model
from latentkv.engine.engine import Engine
from latentkv.models.load import open_checkpoint

Run = Callable[[list[int], int], tuple[float, float]]


def ours(attention: str, *, weights: str) -> Run:
    """This library, with the attention layer named, and weights in float32 or as they are stored."""
    loaded = load_model(attention=attention, dtype="float32", weights=weights)
    engine = Engine(loaded.model, cache_format="f32", prefix_cache=False)

    def run(prompt: list[int], tokens: int) -> tuple[float, float]:
        before = engine.stats()
        engine.add_request(prompt, SamplingParams(temperature=0.0, max_tokens=tokens + 1, ignore_eos=True))
        while engine.has_work:
            engine.step()
        after = engine.stats()
        return after.prefill_seconds - before.prefill_seconds, after.decode_seconds - before.decode_seconds

    return run


def transformers_peer() -> Run:
    """The same weights in transformers."""
    from transformers import LlamaConfig, LlamaForCausalLM

    checkpoint = open_checkpoint()
    fields = {name: value for name, value in checkpoint.config.items() if name not in ("model_type", "rope_interleave")}
    model = LlamaForCausalLM(LlamaConfig(**fields)).eval()
    state = {name: checkpoint.source.get(name, dtype=torch.float32) for name in checkpoint.source.names()}
    for name, tensor in state.items():
        if name.endswith(("q_proj.weight", "k_proj.weight")):  # stored for interleaved RoPE, expected in halves
            pairs = tensor.view(-1, model.config.head_dim // 2, 2, tensor.shape[1])
            state[name] = pairs.transpose(1, 2).reshape(tensor.shape)
    model.load_state_dict(state, strict=False)  # the tied head is absent

    @torch.inference_mode()
    def run(prompt: list[int], tokens: int) -> tuple[float, float]:
        begin = time.perf_counter()
        out = model(torch.tensor([prompt]), use_cache=True, logits_to_keep=1)
        middle = time.perf_counter()
        for _ in range(tokens):
            out = model(out.logits[:, -1:].argmax(-1), past_key_values=out.past_key_values, use_cache=True)
        return middle - begin, time.perf_counter() - middle

    return run


def read_bandwidth() -> float:
    """Bytes per second that a sum over a large array reads, best of several."""
    array = torch.ones(64 * 2**20)
    best = 0.0
    for _ in range(5):
        begin = time.perf_counter()
        array.sum()
        best = max(best, array.nbytes / (time.perf_counter() - begin))
    return best


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--context", type=int, default=1024, help="prompt tokens of the long case")
    parser.add_argument("--tokens", type=int, default=16, help="decoded tokens")
    arguments = parser.parse_args()
    runs = {
        "latentkv mla, as stored": ours("mla", weights="stored"),
        "latentkv mla": ours("mla", weights="dtype"),
        "latentkv gqa": ours("gqa", weights="dtype"),
        "transformers": transformers_peer(),
    }
    generator = torch.Generator().manual_seed(0)
    results: list[dict[str, Any]] = []
    for context in (32, arguments.context):
        prompt = torch.randint(0, 49152, (context,), generator=generator).tolist()
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
        for repeat in range(arguments.repeats + 1):
            for name, run in runs.items():
                seconds = run(prompt, arguments.tokens)
                if repeat:  # the first turn warms up
                    times[name].append(seconds)
        for name, measured in times.items():
            prefill = context / statistics.median(one[0] for one in measured)
            decode = arguments.tokens / statistics.median(one[1] for one in measured)
            results.append({"engine": name, "context": context, "prefill_tok_s": prefill, "decode_tok_s": decode})
    bandwidth = read_bandwidth()
    floor = bandwidth / (134_515_008 * 4)
    print(
        f"{torch.get_num_threads()} threads, {bandwidth / 1e9:.1f} GB/s read: "
        f"at most {floor:.0f} tok/s decode in float32"
    )
    print(f"{'engine':24}{'context':>8}{'prefill tok/s':>15}{'decode tok/s':>14}")
    for row in results:
        print(f"{row['engine']:24}{row['context']:8}{row['prefill_tok_s']:15.0f}{row['decode_tok_s']:14.1f}")
    print(json.dumps({"read_bytes_s": bandwidth, "threads": torch.get_num_threads(), "results": results}))


if __name__ == "__main__":
    main()
