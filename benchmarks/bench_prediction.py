"""Decode speed as the planner predicts it from two measured ceilings, beside the engine's own.

The models are SmolLM2-135M as it is stored and the random dense DeepSeek-V2 of `latentkv bench model`. The ceilings
are taken in turns with the decoding, because machines are shared; prints a table, the last line is JSON.

`--calibrate` measures the shares that the prediction multiplies the ceilings with (planner/data/efficiency.json): the
linear kernels alone on 4096 x 4096 matrices beyond the caches, attention alone for 1 to 16 heads of DeepSeek's sizes
over 4096 tokens, its reading with one head, and Python's part with two random models too small to take time.

    python benchmarks/bench_prediction.py [--threads 1] [--cpu-time] [--calibrate]
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

from latentkv.backends.ceilings import Ceilings
from latentkv.backends.isa import find_isa
from latentkv.backends.kernels import choose_kernels, native_kernels
from latentkv.bench.attention import decode
from latentkv.bench.kernel_cases import Case
from latentkv.bench.linear import STREAM_SHAPE, bytes_of, random_weight
from latentkv.bench.random_model import CONFIG, RandomSource
from latentkv.bench.subject import DEFAULT_MODEL, open_subject
from latentkv.engine.engine import Engine
from latentkv.engine.sampling_params import SamplingParams
from latentkv.models.config import ModelConfig
from latentkv.models.model import Model
from latentkv.models.step import Execution
from latentkv.ops.linear import Projection
from latentkv.planner.prediction import DecodeModel, predict_decode, this_machine

Clock = Callable[[], float]
CONTEXTS = (128, 1024, 4096)
STREAM_BYTES = 256 * 2**20
HEADS = (1, 2, 4, 8, 16)
FORMATS = {32: "f32", 16: "bf16", 8: "int8", 4: "int4"}
TINY = {"hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 1, "q_lora_rank": 32, "vocab_size": 64}


class Decoder:
    """One request that is decoded token by token; its context is computed before the clock starts."""

    def __init__(self, model: Model, context_tokens: int, tokens: int) -> None:
        self._engine = Engine(model, cache_tokens=context_tokens + tokens + 130)
        params = SamplingParams(temperature=0.0, max_tokens=tokens + 1, ignore_eos=True)
        self._engine.add_request([1 + index % 50 for index in range(context_tokens)], params)
        while not self._engine.stats().decode_tokens:
            self._engine.step()

    def seconds(self, clock: Clock) -> float:
        """Of one more token."""
        begin = clock()
        self._engine.step()
        return clock() - begin


def shares_of(call: Callable[[], object], amount: float, ceiling: Ceilings, *, of_reading: bool, repeats: int) -> float:
    """The median share of a ceiling over turns with it; `amount` is FLOP or bytes of a call."""
    call()
    found = []
    for _ in range(repeats):
        gflops, read_gbs = ceiling.sample()
        begin = ceiling.clock()
        call()
        rate = amount / (ceiling.clock() - begin) / 1e9
        found.append(rate / (read_gbs if of_reading else gflops))
    return statistics.median(found)


def linear_share(format: str, ceiling: Ceilings, repeats: int) -> float:
    """One row of input against weights beyond the caches."""
    first = random_weight(format, STREAM_SHAPE)
    count = -(-STREAM_BYTES // bytes_of(first))
    projections = [Projection(random_weight(format, STREAM_SHAPE)) for _ in range(count)]
    kernels, x = native_kernels(ceiling.isa.name, integer=False), torch.randn(1, STREAM_SHAPE[1])

    def call() -> None:
        for projection in projections:
            kernels.linear_stack(x, (projection,))

    # Kernels that prefetch read faster than the plain burst; the prediction trusts no share of a ceiling above 1.
    return min(1.0, shares_of(call, bytes_of(first) * count, ceiling, of_reading=True, repeats=repeats))


def python_part(clock: Clock, tokens: int) -> tuple[float, float]:
    """Seconds per layer and per step, from two models whose numbers take no time."""
    seconds = {}
    for layers in (2, 18):
        fields = {**CONFIG, **TINY, "num_hidden_layers": layers, "first_k_dense_replace": layers}
        model = Model.read(
            RandomSource(fields),
            ModelConfig.from_dict(fields),
            dtype=torch.float32,
            keep_stored=True,
            execution=Execution(choose_kernels()),
        )
        decoder = Decoder(model, 16, tokens + 4)
        seconds[layers] = statistics.median(decoder.seconds(clock) for _ in range(tokens))
    per_layer = (seconds[18] - seconds[2]) / 16
    return per_layer, seconds[2] - 2 * per_layer


def attention_case(heads: int, tokens: int, threads: int) -> Case:
    """Decode of one sequence in latent form over DeepSeek's rows."""
    return decode("", isa=None, heads=heads, tokens=tokens, batch=1, threads=threads, new=1)


def calibrate(ceiling: Ceilings, repeats: int) -> dict[str, Any]:
    """What efficiency.json holds."""
    threads = ceiling.threads
    compute = {heads: attention_case(heads, 4096, threads) for heads in HEADS}
    read = attention_case(1, 16384, threads)
    per_layer, per_step = python_part(ceiling.clock, 8 * repeats)
    return {
        "isa": ceiling.isa.name,
        "threads": threads,
        "weight_read": {bits: round(linear_share(format, ceiling, repeats), 3) for bits, format in FORMATS.items()},
        "attention_flops": {
            heads: round(shares_of(case.call, case.flops, ceiling, of_reading=False, repeats=repeats), 3)
            for heads, case in compute.items()
        },
        "attention_read": round(shares_of(read.call, read.read_bytes, ceiling, of_reading=True, repeats=repeats), 3),
        "layer_us": round(per_layer * 1e6, 1),
        "step_us": round(per_step * 1e6, 1),
    }


def as_planned(model: Model) -> DecodeModel:
    """What the planner knows of a loaded model."""
    embedding = 0 if model.config.tie_word_embeddings else model.embedding.numel() * model.embedding.element_size()
    bits = 8 * model.weight_bytes / model.num_parameters
    return DecodeModel(model.geometry, model.weight_bytes - embedding, bits)


def compare(name: str | None, ceiling: Ceilings, tokens: int) -> list[Mapping[str, object]]:
    """Predicted and measured at each context."""
    subject = open_subject(name)
    rows: list[Mapping[str, object]] = []
    for context in CONTEXTS:
        decoder = Decoder(subject.model, context, tokens)
        pairs = []
        for _ in range(tokens - 1):
            gflops, read_gbs = ceiling.sample()
            measured = decoder.seconds(ceiling.clock)
            machine = this_machine("here", gflops=gflops, read_gbs=read_gbs)
            predicted = predict_decode(as_planned(subject.model), machine, context_tokens=context)
            pairs.append((predicted.tokens_per_second, 1 / measured))
        predicted_rate, measured_rate = (statistics.median(column) for column in zip(*pairs, strict=True))
        off = statistics.median(predicted / measured for predicted, measured in pairs) - 1
        rows.append(
            {
                "model": "SmolLM2-135M" if name else subject.name,
                "context": context,
                "predicted_tok_s": round(predicted_rate, 2),
                "measured_tok_s": round(measured_rate, 2),
                "off": round(off, 3),
            }
        )
    return rows


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=8, help="decoded per case")
    parser.add_argument("--cpu-time", action="store_true", help="one thread's own time, on a machine that others share")
    parser.add_argument("--calibrate", action="store_true", help="measure the shares instead")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    clock = time.thread_time if options.cpu_time else time.perf_counter
    ceiling = Ceilings(find_isa(), options.threads, clock)
    if options.calibrate:
        print(json.dumps(calibrate(ceiling, options.repeats), indent=1))
        return
    rows = [row for name in (DEFAULT_MODEL, None) for row in compare(name, ceiling, options.tokens)]
    print(f"{'model':28}{'context':>8}{'predicted tok/s':>17}{'measured tok/s':>16}{'off by':>9}")
    for row in rows:
        print(
            f"{row['model']:28}{row['context']:8}{row['predicted_tok_s']:17}{row['measured_tok_s']:16}{row['off']:+9.0%}"
        )
    best = {"gflops": round(ceiling.gflops, 1), "read_gbs": round(ceiling.read_gbs, 2)}
    print(json.dumps({"isa": ceiling.isa.name, "threads": options.threads, "ceilings": best, "cases": rows}))


if __name__ == "__main__":
    main()
