"""Claims F: what is said against MLA."""

from __future__ import annotations

from latentkv.planner.claims.arithmetic import Calculation, Conditions, Result, mla, ratio
from latentkv.planner.roofline import arithmetic_ratio


def rope_share(given: Conditions) -> tuple[Result, ...]:
    """The part of a key that knows its position."""
    geometry = mla(given.text("model"))
    rope, nope, latent = geometry.qk_rope_head_dim, geometry.qk_nope_head_dim, geometry.kv_lora_rank
    return (
        Result("of a head's key", 100 * rope / (nope + rope), "%", f"{rope} / ({nope} + {rope})"),
        Result("of the cached row", 100 * rope / (latent + rope), "%", f"{rope} / ({latent} + {rope})"),
    )


def work_per_cached_token(given: Conditions) -> tuple[Result, ...]:
    """Multiply-adds per cached token and layer: expanded each step, in head form, in latent form."""
    geometry = mla(given.text("model"))
    heads, latent, rope = geometry.num_attention_heads, geometry.kv_lora_rank, geometry.qk_rope_head_dim
    nope, value = geometry.qk_nope_head_dim, geometry.v_head_dim
    plain = heads * (nope + rope + value)
    absorbed = heads * (2 * latent + rope)
    expansion = latent * heads * (nope + value)
    return (
        Result(
            "latent over head form", arithmetic_ratio(geometry), "x", f"{2 * latent + rope} / {nope + rope + value}"
        ),
        ratio("latent over plain heads of 128 + 128", absorbed, heads * (nope + value)),
        Result("latent form", absorbed, "MAC", f"{heads} x ({latent} + {rope} + {latent})"),
        Result("head form, expanded already", plain, "MAC", f"{heads} x ({nope} + {rope} + {value})"),
        Result("expansion, if done each step", expansion, "MAC", f"{latent} x {heads} x ({nope} + {value})"),
    )


CALCULATIONS: dict[str, Calculation] = {"F1": rope_share, "F2b": work_per_cached_token}
