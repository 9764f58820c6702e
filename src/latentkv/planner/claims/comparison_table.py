"""Claims E: a published table of DeepSeek's models side by side."""

from __future__ import annotations

from latentkv.planner.claims.arithmetic import (
    Calculation,
    Conditions,
    Result,
    as_gqa,
    as_mha,
    elements,
    heads_of,
    in_bytes,
    layer_bytes,
    mla,
    ratio,
    row_elements,
    told,
)
from latentkv.planner.units import GIB, KIB


def kv_heads(given: Conditions) -> tuple[Result, ...]:
    """KV heads of a model, and its query heads."""
    geometry = heads_of(given.text("baseline"))
    return (
        Result("KV heads", geometry.num_key_value_heads, "heads", "num_key_value_heads"),
        Result("query heads", geometry.num_attention_heads, "heads", "num_attention_heads"),
    )


def baseline_row(given: Conditions) -> tuple[Result, ...]:
    """Bytes per token and layer of the baseline, and of the MHA that it is not."""
    name, bits = given.text("baseline"), given.number("bits")
    return (_kib("bytes per layer", row_elements(name), bits), _kib("as MHA", as_mha(name).row_elements, bits))


def mla_row(given: Conditions) -> tuple[Result, ...]:
    """Bytes per token and layer of MLA, and of FlashMLA's fp8 row."""
    name, bits = given.text("model"), given.number("bits")
    numbers, stored = row_elements(name), layer_bytes(name, given.text("format"))
    sum = f"{numbers} x {told(bits)} / 8"
    return (
        Result("bytes per layer", in_bytes(numbers, bits) / 1e3, "KB", sum),
        Result("as stored rows", stored / 1e3, "KB", f"{stored} / 1,000"),
    )


def smaller_than_baseline(given: Conditions) -> tuple[Result, ...]:
    """MLA against the baseline, per layer and per model."""
    model, baseline, bits = given.text("model"), given.text("baseline"), given.number("baseline_bits")
    whole = in_bytes(elements(baseline), bits)
    return (
        ratio("per layer", in_bytes(row_elements(baseline), bits), in_bytes(row_elements(model), bits)),
        ratio("per model", whole, in_bytes(elements(model), bits)),
        ratio("per model, cache quantised", whole, in_bytes(elements(model), given.number("bits"))),
    )


def baseline_footprint(given: Conditions) -> tuple[Result, ...]:
    """One sequence of the baseline, and of the MHA that it is not."""
    name, bits, tokens = given.text("baseline"), given.number("bits"), given.number("context_tokens")
    mha = as_mha(name)
    sizes = {"one sequence": elements(name), "as MHA": mha.row_elements * mha.num_hidden_layers}
    return tuple(
        Result(role, in_bytes(numbers, bits) * tokens / 1e9, "GB", f"{told(in_bytes(numbers, bits))} x {told(tokens)}")
        for role, numbers in sizes.items()
    )


def baseline_throughput(given: Conditions) -> tuple[Result, ...]:
    """Read from the figure, and from the text's rate over its gain."""
    bar, least, gain = (given.number(name) for name in ("baseline_tokens_per_second", "stated_rate", "stated_gain"))
    return (
        Result("of the figure", bar, "tokens/s", told(bar)),
        Result("from the text", least / gain, "tokens/s", f"{told(least)} / {told(gain)}"),
    )


def throughput(given: Conditions) -> tuple[Result, ...]:
    """A bar of the figure."""
    bar = given.number("tokens_per_second")
    return (Result("of the figure", bar, "tokens/s", told(bar)),)


def throughput_of_the_table(given: Conditions) -> tuple[Result, ...]:
    """The gain of the figure, and the one that the table's own cells give."""
    return (
        ratio("gain", given.number("tokens_per_second"), given.number("baseline_tokens_per_second")),
        ratio("gain of the table's cells", given.number("table_rate"), given.number("table_baseline_rate")),
    )


def as_if_gqa(given: Conditions) -> tuple[Result, ...]:
    """A model's own heads in `groups` KV heads."""
    model, bits = given.text("model"), given.number("bits")
    gqa = as_gqa(model, round(given.number("groups")))
    size = in_bytes(gqa.row_elements * gqa.num_hidden_layers, bits) * given.number("context_tokens")
    return (
        _kib("bytes per layer", gqa.row_elements, bits),
        ratio("ratio", gqa.row_elements, row_elements(model)),
        Result("one sequence", size / 1e9, "GB", f"{told(size)} / 10^9"),
        Result("one sequence, GiB", size / GIB, "GiB", f"{told(size)} / 2^30"),
    )


def ranks(given: Conditions) -> tuple[Result, ...]:
    """The widths of V2's compressed vectors."""
    geometry = mla(given.text("model"))
    return (
        Result("d_c", geometry.kv_lora_rank, "elements", "kv_lora_rank"),
        Result("d'_c", geometry.q_lora_rank or 0, "elements", "q_lora_rank"),
        Result("d_r", geometry.qk_rope_head_dim, "elements", "qk_rope_head_dim"),
        ratio("d_c over the head", geometry.kv_lora_rank, geometry.v_head_dim),
    )


def _kib(name: str, numbers: float, bits: float) -> Result:
    return Result(name, in_bytes(numbers, bits) / KIB, "KiB", f"{told(numbers)} x {told(bits)} / 8 / 1,024")


CALCULATIONS: dict[str, Calculation] = {
    "E0": kv_heads,
    "E1": baseline_row,
    "E1b": mla_row,
    "E2": smaller_than_baseline,
    "E3": baseline_footprint,
    "E4": baseline_throughput,
    "E4b": throughput,
    "E4d": throughput_of_the_table,
    "E6": as_if_gqa,
    "E8": ranks,
}
