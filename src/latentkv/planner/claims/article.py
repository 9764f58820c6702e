"""Claims D: what an article says about MLA beside MHA, GQA and MQA."""

from __future__ import annotations

from latentkv.planner.claims.arithmetic import (
    Calculation,
    Conditions,
    Result,
    as_mha,
    elements,
    heads_of,
    in_bytes,
    mla,
    ratio,
    row_elements,
    told,
)
from latentkv.planner.units import GIB


def mha_footprint(given: Conditions) -> tuple[Result, ...]:
    """A model's own heads, cached as MHA would."""
    mha = as_mha(given.text("model"))
    numbers = mha.row_elements * mha.num_hidden_layers
    per_token = in_bytes(numbers, given.number("bits"))
    sum = f"2 x {mha.num_key_value_heads} x {mha.head_dim} x {mha.num_hidden_layers}"
    return (
        Result("cached per token", numbers / 1e6, "million elements", sum),
        Result("bytes per token", per_token / 1e6, "MB", f"{told(numbers)} x {told(given.number('bits'))} / 8"),
        *_sequence("one sequence", per_token, given.number("context_tokens")),
    )


def fits_a_device(given: Conditions) -> tuple[Result, ...]:
    """The same, in devices."""
    mha = as_mha(given.text("model"))
    per_token = in_bytes(mha.row_elements * mha.num_hidden_layers, given.number("bits"))
    return (
        ratio("devices filled", per_token * given.number("context_tokens"), given.number("memory_bytes"), "devices"),
    )


def smaller_than_mha(given: Conditions) -> tuple[Result, ...]:
    """MLA against an MHA of its own heads, and against the MHA models that were trained for comparison."""
    model = given.text("model")
    geometry = mla(model)
    wide = geometry.qk_nope_head_dim + geometry.qk_rope_head_dim
    return (
        ratio("ratio", as_mha(model).row_elements, geometry.row_elements),
        ratio("ratio, keys with their RoPE part", as_mha(model, key_dim=wide).row_elements, geometry.row_elements),
        ratio("ratio of the paper's large pair", given.number("large_mha"), given.number("large_mla")),
        ratio("ratio of the paper's small pair", given.number("small_mha"), given.number("small_mla")),
    )


def smaller_than_mha_of_64(given: Conditions) -> tuple[Result, ...]:
    """The same for a model of 64 heads, and the slip of units that gives the same number."""
    model = given.text("model")
    slip = as_mha(given.text("other")).row_elements
    return (
        ratio("ratio", as_mha(model).row_elements, row_elements(model)),
        ratio("elements over bytes, 128 heads", slip, in_bytes(row_elements(given.text("other")), 16)),
    )


def mla_footprint(given: Conditions) -> tuple[Result, ...]:
    """One sequence of each of two models."""
    found: list[Result] = []
    for role, name in (("model", "one sequence"), ("other", "the other model's")):
        per_token = in_bytes(elements(given.text(role)), given.number("bits"))
        found += _sequence(name, per_token, given.number("context_tokens"))
    return tuple(found)


def gqa_compression(given: Conditions) -> tuple[Result, ...]:
    """Query heads per KV head."""
    geometry = heads_of(given.text("model"))
    return (ratio("ratio", geometry.num_attention_heads, geometry.num_key_value_heads),)


def mla_beyond_gqa(given: Conditions) -> tuple[Result, ...]:
    """MLA's ratio over GQA's, each against the MHA of its own heads."""
    model, other = given.text("model"), heads_of(given.text("baseline"))
    compressed = as_mha(model).row_elements / row_elements(model)
    return (
        ratio("ratio of the ratios", compressed, other.num_attention_heads / other.num_key_value_heads),
        ratio("MLA in GQA groups", row_elements(model), 2 * mla(model).v_head_dim, "groups"),
    )


def mla_over_mqa(given: Conditions) -> tuple[Result, ...]:
    """MLA's row over one key and one value."""
    model = given.text("model")
    return (ratio("times MQA's cache", row_elements(model), 2 * mla(model).v_head_dim),)


def heads_compared(given: Conditions) -> tuple[Result, ...]:
    """Query heads of several models."""
    heads = mla(given.text("model")).num_attention_heads
    return (
        ratio("against Llama-2-70B", heads, heads_of("meta-llama/Llama-2-70b-hf").num_attention_heads),
        ratio("against Llama-2-13B", heads, given.number("llama_2_13b_heads")),
        ratio("against Llama-3.1-405B", heads, heads_of("meta-llama/Llama-3.1-405B").num_attention_heads),
    )


def _sequence(name: str, per_token: float, context_tokens: float) -> tuple[Result, Result]:
    size, sum = per_token * context_tokens, f"{told(per_token)} x {told(context_tokens)}"
    return Result(f"{name}, GB", size / 1e9, "GB", sum), Result(f"{name}, GiB", size / GIB, "GiB", sum)


CALCULATIONS: dict[str, Calculation] = {
    "D1": mha_footprint,
    "D1b": fits_a_device,
    "D2": smaller_than_mha,
    "D3": smaller_than_mha_of_64,
    "D4": mla_footprint,
    "D5": gqa_compression,
    "D5b": mla_beyond_gqa,
    "D6": mla_over_mqa,
    "D7": heads_compared,
    "E3b": mla_footprint,
    "F2": smaller_than_mha,
}
