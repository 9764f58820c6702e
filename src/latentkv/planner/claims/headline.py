"""Claims A: the headline figures of the DeepSeek-V2 paper, 93.3 %, 5.76x and 15x."""

from __future__ import annotations

from latentkv.planner.catalog import find_model
from latentkv.planner.claims.arithmetic import (
    Calculation,
    Conditions,
    Result,
    elements,
    in_bytes,
    mla,
    ratio,
    share_saved,
    told,
)
from latentkv.planner.footprint import footprint


def cache_reduction(given: Conditions) -> tuple[Result, ...]:
    """The cache of one model against another's: as claimed, at equal precision, and in a format that exists."""
    model, baseline = given.text("model"), given.text("baseline")
    large = in_bytes(elements(baseline), given.number("baseline_bits"))
    claimed = in_bytes(elements(model), given.number("bits"))
    equal = in_bytes(elements(model), given.number("baseline_bits"))
    stored = footprint(find_model(model).layers, format=given.text("format")).bytes_per_token
    return (
        share_saved("reduction", claimed, large),
        ratio("ratio", large, claimed),
        share_saved("reduction at equal precision", equal, large),
        ratio("ratio at equal precision", large, equal),
        share_saved("reduction with scales and RoPE as latentkv stores them", stored, large),
    )


def throughput_gain(given: Conditions) -> tuple[Result, ...]:
    """Two bars of one figure."""
    return (ratio("gain", given.number("tokens_per_second"), given.number("baseline_tokens_per_second")),)


def model_sizes(given: Conditions) -> tuple[Result, ...]:
    """Parameters in all, counted from the configurations."""
    found = [find_model(given.text(name)) for name in ("model", "meant")]
    return tuple(
        Result(f"parameters of the {role}", model.params_total / 1e9, "billion", f"{told(model.params_total)} / 10^9")
        for role, model in zip(("model named", "model meant"), found, strict=True)
        if model.params_total is not None
    )


def cache_formula(given: Conditions) -> tuple[Result, ...]:
    """(L + R) numbers per token and layer, times layers, times tokens."""
    geometry = mla(given.text("model"))
    latent, rope, layers = geometry.kv_lora_rank, geometry.qk_rope_head_dim, geometry.num_hidden_layers
    per_token = (latent + rope) * layers
    size = in_bytes(per_token, given.number("bits")) * given.number("context_tokens")
    return (
        Result("cached per token", per_token, "elements", f"({latent} + {rope}) x {layers}"),
        Result(
            "one sequence",
            size / 1e9,
            "GB",
            f"{told(per_token)} x {told(given.number('bits'))} / 8 x {told(given.number('context_tokens'))}",
        ),
    )


CALCULATIONS: dict[str, Calculation] = {
    "A1": cache_reduction,
    "A2": throughput_gain,
    "A2b": throughput_gain,
    "A2c": throughput_gain,
    "A3": cache_reduction,
    "A4": model_sizes,
    "A6": cache_formula,
}
