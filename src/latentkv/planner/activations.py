"""What a step needs besides weights and cache: an estimate, from sizes alone, that errs on the generous side.

With T tokens computed in one step, U users, H heads of this device, numbers of 2 bytes unless said:

    residual    3 T hidden_size                            the stream, its normed copy, a layer's output
    attention   T (H (N + R) + cached row + H V)           queries, new rows, outputs
    feedforward 2 T width                                  gate and up; width = intermediate_size, or the experts' of a
                                                           token: num_experts_per_tok + n_shared_experts of them
    logits      4 B x U vocab_size                         float32, for each sequence's last token
    workspace   min(S, 8192) H (N + V)                     MLA's keys and values expanded for a chunk (head form)
              + 4 B x 8 U H (L + 1)                        partial results of a decode step split 8 ways, with their LSE

Attention and feed-forward are not alive together: the larger counts. Engines differ: give a measured figure where
there is one.
"""

from __future__ import annotations

from dataclasses import dataclass

from latentkv.geometry import MLAGeometry
from latentkv.geometry_fields import Fields, optional_size
from latentkv.planner.model import Model

ACTIVATION_BYTES, FLOAT32_BYTES = 2, 4
DEFAULT_STEP_TOKENS = 2048
EXPANDED_TOKENS = 8192
DECODE_SPLITS = 8


@dataclass(frozen=True, slots=True)
class StepNeed:
    """Bytes of one device during a step; `missing` names the fields whose part could not be counted."""

    activation_bytes: int
    workspace_bytes: int
    missing: tuple[str, ...]


def step_need(model: Model, *, step_tokens: int, users: int, context_tokens: int, tensor: int = 1) -> StepNeed:
    """The estimate above for one device of `tensor` that split the heads; grows with each argument but the last."""
    fields, missing = model.fields, []
    hidden, vocabulary, width = model.hidden_size, optional_size(fields, "vocab_size"), _feedforward_width(fields)
    for name, size in (("hidden_size", hidden), ("vocab_size", vocabulary), ("intermediate_size", width)):
        if size is None:
            missing.append(name)
    residual = 3 * step_tokens * (hidden or 0)
    feedforward = 2 * step_tokens * -(-(width or 0) // tensor)
    attention = step_tokens * _attention_elements(model, tensor)
    logits = FLOAT32_BYTES * users * -(-(vocabulary or 0) // tensor)
    activations = ACTIVATION_BYTES * (residual + max(attention, feedforward)) + logits
    return StepNeed(activations, _workspace_bytes(model, users, context_tokens, tensor), tuple(missing))


def _feedforward_width(fields: Fields) -> int | None:
    per_token = optional_size(fields, "num_experts_per_tok")
    expert = optional_size(fields, "moe_intermediate_size")
    dense = optional_size(fields, "intermediate_size")
    if per_token is None or expert is None:
        return dense
    shared = optional_size(fields, "n_shared_experts", minimum=0) or 0
    return max(dense or 0, (per_token + shared) * expert)


def _attention_elements(model: Model, tensor: int) -> int:
    geometry = model.geometry
    heads = -(-geometry.num_attention_heads // tensor)
    if isinstance(geometry, MLAGeometry):
        query = geometry.qk_nope_head_dim + geometry.query_rope_dim
        return heads * (query + geometry.v_head_dim) + geometry.row_elements
    return heads * (geometry.head_dim + geometry.v_head_dim) + -(-geometry.row_elements // tensor)


def _workspace_bytes(model: Model, users: int, context_tokens: int, tensor: int) -> int:
    geometry = model.geometry
    heads = -(-geometry.num_attention_heads // tensor)
    if not isinstance(geometry, MLAGeometry):
        return FLOAT32_BYTES * DECODE_SPLITS * users * heads * (geometry.v_head_dim + 1)
    expanded = min(context_tokens, EXPANDED_TOKENS) * heads * (geometry.qk_nope_head_dim + geometry.v_head_dim)
    return ACTIVATION_BYTES * expanded + FLOAT32_BYTES * DECODE_SPLITS * users * heads * (geometry.kv_lora_rank + 1)
