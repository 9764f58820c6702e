"""Claims C: FlashMLA, vLLM, and what an H100 holds."""

from __future__ import annotations

from dataclasses import replace

from latentkv.errors import OptionError, sentence
from latentkv.planner.catalog import find_model
from latentkv.planner.claims.arithmetic import (
    KEY_DIM,
    Calculation,
    Conditions,
    Result,
    as_mha,
    elements,
    in_bytes,
    mla,
    ratio,
    told,
)
from latentkv.planner.devices import Device, find_device
from latentkv.planner.roofline import Load, attention_work


def shares_of_peak(given: Conditions) -> tuple[Result, ...]:
    """A kernel's rates against its device's data sheet, and against the peak that the device keeps up."""
    device = find_device(given.text("device"))
    flops = given.number("tflops")
    return (
        _share("of the bandwidth", given.number("gb_per_s"), device.bandwidth_bytes_s / 1e9),
        _share("of the arithmetic", flops, _peak(device) / 1e12),
        _share("of the throttled arithmetic", flops, given.number("throttled_tflops")),
    )


def decode_bound(given: Conditions) -> tuple[Result, ...]:
    """Operations per byte of MLA's decode, and the ridge of the device it runs on."""
    device = find_device(given.text("device"))
    geometry = replace(mla(given.text("model")), num_attention_heads=round(given.number("heads")))
    queries = round(given.number("queries"))
    tokens = 1 << 20  # long, so that the causal corner of the step itself does not show
    work = attention_work(geometry, Load(context_tokens=tokens, queries=queries))
    width = 2 * geometry.kv_lora_rank + geometry.qk_rope_head_dim
    sum = f"2 x {geometry.num_attention_heads} x {width} x {queries} / {2 * geometry.row_elements}"
    bandwidth = device.bandwidth_bytes_s / 1e12
    throttled = given.number("throttled_tflops")
    return (
        Result("intensity", work.intensity, "FLOP/B", sum),
        Result(
            "ridge", _peak(device) / 1e12 / bandwidth, "FLOP/B", f"{told(_peak(device) / 1e12)} / {told(bandwidth)}"
        ),
        Result("ridge when throttled", throttled / bandwidth, "FLOP/B", f"{told(throttled)} / {told(bandwidth)}"),
    )


def token_capacity(given: Conditions) -> tuple[Result, ...]:
    """Tokens that fit: counted by an engine, and from the shapes of a rank under tensor parallelism."""
    geometry = mla(given.text("model"))
    ranks, padded = round(given.number("tensor_ranks")), given.number("padded_dim")
    heads, row = geometry.num_attention_heads, geometry.row_elements
    return (
        ratio("from the shapes, keys and values padded", 2 * heads / ranks * padded, row),
        ratio("as the engine counted", given.number("tokens"), given.number("baseline_tokens")),
        ratio("from the shapes, keys and values 128 wide", 2 * heads / ranks * KEY_DIM, row),
        ratio("without tensor parallelism, padded", 2 * heads * padded, row),
    )


def tokens_of_a_card(given: Conditions) -> tuple[Result, ...]:
    """Tokens in a memory that holds nothing else: the true sums, and those that were made."""
    model, memory, bits = given.text("model"), given.number("memory_bytes"), given.number("bits")
    geometry, hidden = mla(model), find_model(model).hidden_size or 0
    layers = geometry.num_hidden_layers

    def fits(name: str, numbers: int) -> Result:
        per_token = in_bytes(numbers, bits)
        return Result(name, memory // per_token, "tokens", f"{told(memory)} / {told(per_token)}")

    wide = geometry.qk_nope_head_dim + geometry.qk_rope_head_dim
    return (
        fits("MHA", as_mha(model).row_elements * layers),
        fits("MLA", elements(model)),
        fits("MHA, keys with their RoPE part", as_mha(model, key_dim=wide).row_elements * layers),
        fits("MHA as posted: hidden size for the heads", 2 * hidden * layers),
        fits("MLA as posted: latent twice, no RoPE key", 2 * geometry.kv_lora_rank * layers),
    )


def groups_worth(given: Conditions) -> tuple[Result, ...]:
    """MLA's row in units of one GQA group, a key and a value of one head."""
    geometry = mla(given.text("model"))
    return (ratio("GQA groups", geometry.row_elements, 2 * geometry.v_head_dim, "groups"),)


def _share(name: str, part: float, whole: float) -> Result:
    return Result(name, 100 * part / whole, "%", f"{told(part)} / {told(whole)}")


def _peak(device: Device) -> float:
    rate = device.rate("bf16")
    if rate is None:
        raise OptionError(sentence("condition device", expected="one with a published bf16 rate", got=device.name))
    return rate


CALCULATIONS: dict[str, Calculation] = {
    "C1b": shares_of_peak,
    "C2": decode_bound,
    "C3b": token_capacity,
    "C4": tokens_of_a_card,
    "C5": groups_worth,
}
