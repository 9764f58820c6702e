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


@dataclass(frozen=True, slots=True)
class StepSizes:
    """What the estimate takes from a model: sizes in elements, 0 where the configuration does not say.

    head_elements:     of one head's query and output, in one token
    row_elements:      of the new cached row; `row_splits` tells whether tensor ranks share it (a latent has no heads)
    expanded_elements: of one head's keys and values that are expanded from one latent; 0 without latents
    partial_elements:  of one head's partial result of a decode step, with its LSE
    missing:           names of the fields that are not there
    """

    hidden: int
    vocabulary: int
    feedforward: int
    heads: int
    head_elements: int
    row_elements: int
    row_splits: bool
    expanded_elements: int
    partial_elements: int
    missing: tuple[str, ...]

    def need(self, *, step_tokens: int, users: int, context_tokens: int, tensor: int = 1) -> StepNeed:
        """The estimate above for one device of `tensor` that split the heads; grows with each argument but the last."""
        heads = -(-self.heads // tensor)
        row = -(-self.row_elements // tensor) if self.row_splits else self.row_elements
        residual = 3 * step_tokens * self.hidden
        attention = step_tokens * (heads * self.head_elements + row)
        feedforward = 2 * step_tokens * -(-self.feedforward // tensor)
        logits = FLOAT32_BYTES * users * -(-self.vocabulary // tensor)
        expanded = min(context_tokens, EXPANDED_TOKENS) * heads * self.expanded_elements
        partial = DECODE_SPLITS * users * heads * self.partial_elements
        return StepNeed(
            activation_bytes=ACTIVATION_BYTES * (residual + max(attention, feedforward)) + logits,
            workspace_bytes=ACTIVATION_BYTES * expanded + FLOAT32_BYTES * partial,
            missing=self.missing,
        )


def step_sizes(model: Model) -> StepSizes:
    """The sizes of `model`. Raises ConfigError for a model without attention layers."""
    geometry = model.geometry
    found = {
        "hidden_size": model.hidden_size,
        "vocab_size": optional_size(model.fields, "vocab_size"),
        "intermediate_size": _feedforward_width(model.fields),
    }
    if isinstance(geometry, MLAGeometry):
        query, partial = geometry.qk_nope_head_dim + geometry.query_rope_dim, geometry.kv_lora_rank + 1
        expanded = geometry.qk_nope_head_dim + geometry.v_head_dim
    else:
        query, partial, expanded = geometry.head_dim, geometry.v_head_dim + 1, 0
    return StepSizes(
        hidden=found["hidden_size"] or 0,
        vocabulary=found["vocab_size"] or 0,
        feedforward=found["intermediate_size"] or 0,
        heads=geometry.num_attention_heads,
        head_elements=query + geometry.v_head_dim,
        row_elements=geometry.row_elements,
        row_splits=not isinstance(geometry, MLAGeometry),
        expanded_elements=expanded,
        partial_elements=partial,
        missing=tuple(name for name, size in found.items() if size is None),
    )


def _feedforward_width(fields: Fields) -> int | None:
    per_token = optional_size(fields, "num_experts_per_tok")
    expert = optional_size(fields, "moe_intermediate_size")
    dense = optional_size(fields, "intermediate_size")
    if per_token is None or expert is None:
        return dense
    shared = optional_size(fields, "n_shared_experts", minimum=0) or 0
    return max(dense or 0, (per_token + shared) * expert)
