"""What a reader of a plan must be told: what was left out, what does not split, and how each figure comes about."""

from __future__ import annotations

from latentkv.geometry import Geometry, MLAGeometry
from latentkv.planner.activations import step_sizes
from latentkv.planner.footprint import code_bits, footprint, row_bytes
from latentkv.planner.memory import Deployment
from latentkv.planner.model import Model
from latentkv.planner.parallel import Parallel
from latentkv.planner.weights import WEIGHT_FORMATS


def notes_on(
    model: Model, deployment: Deployment, *, context_tokens: int, served: bool, longest_fitting: int = 0
) -> tuple[str, ...]:
    """Sentences about this model and, where it is `served`, about this way of serving it, the most surprising first."""
    return (
        *_parallel_notes(model, deployment.parallel),
        *layer_notes(model),
        *(_estimate_notes(model, deployment) if served else ()),
        *_context_notes(model, context_tokens, longest_fitting),
        *((f"About this model: {model.notes}.",) if model.notes else ()),
    )


def explained(model: Model, *, format: str, context_tokens: int, page_tokens: int) -> tuple[str, ...]:
    """The formulas with this model's numbers in them."""
    cache = footprint(model.layers, format=format, page_tokens=page_tokens)
    lines = [_row_formula(group.layers.geometry, format) for group in cache.groups if group.layers.geometry is not None]
    layers = " + ".join(f"{group.layers.count} x {group.row_bytes:,} B" for group in cache.groups if group.layout)
    lines.append(f"bytes per token = layers x row = {layers} = {cache.bytes_per_token:,} B")
    for group in cache.groups:
        state = group.layers.state_bytes
        if state:
            lines.append(f"{group.layers.count} linear layers keep {state:,} B each per sequence, whatever the context")
        elif group.layout is not None:
            pages = group.pages(context_tokens)
            lines.append(
                f"{group.layers.name}: {context_tokens:,} tokens = {pages:,} pages of {page_tokens} = "
                f"{pages * page_tokens:,} rows in each of {group.layers.count} layers"
            )
    lines.append("a device holds weights + activations + workspace + reserve + cache (planner/activations.py)")
    return tuple(dict.fromkeys(lines))


def _row_formula(geometry: Geometry, format: str) -> str:
    if isinstance(geometry, MLAGeometry):
        elements = f"latent {geometry.kv_lora_rank} + RoPE key {geometry.qk_rope_head_dim}"
    else:
        elements = f"{geometry.num_key_value_heads} KV heads x (key {geometry.head_dim} + value {geometry.v_head_dim})"
    row = row_bytes(geometry, format)
    extra = f" + {row.wider_parts:,} B kept wider" if row.wider_parts else ""
    extra += f" + {row.scales:,} B scales" if row.scales else ""
    extra += f" + {row.padding:,} B padding" if row.padding else ""
    total = f" = {row.total:,} B" if extra else ""
    return (
        f"row in {format} = ({elements}) = {geometry.row_elements:,} elements x {code_bits(format):g} bits = "
        f"{row.codes_only:,} B{extra}{total}"
    )


def _parallel_notes(model: Model, parallel: Parallel) -> list[str]:
    notes = []
    geometry = model.geometry
    if isinstance(geometry, MLAGeometry) and parallel.tensor > parallel.context:
        notes.append(
            f"Tensor parallelism does not split an MLA cache: the latent has no heads, so each of the "
            f"{parallel.tensor} ranks keeps all {geometry.row_elements} elements of every token it serves. "
            "DP-attention splits users, context parallelism splits tokens."
        )
    elif not isinstance(geometry, MLAGeometry):
        ranks = parallel.tensor // parallel.context
        if ranks > geometry.num_key_value_heads:
            notes.append(
                f"{ranks} tensor ranks share {geometry.num_key_value_heads} KV heads: each head is kept "
                f"{ranks / geometry.num_key_value_heads:g} times."
            )
    if parallel.data > 1:
        notes.append(
            "DP-attention: each data rank keeps attention's weights whole; experts and all else are split over all "
            "devices."
        )
    return notes


def layer_notes(model: Model) -> list[str]:
    """What holds for this model's layers however it is served; nothing where all are alike."""
    notes = []
    if not model.uniform:
        notes.append(f"Counted layer by layer: {', '.join(f'{group.count} {group.name}' for group in model.layers)}.")
    if any(group.index_elements for group in model.layers):
        notes.append(
            "Indexer keys count as part of the row: plain numbers in plain formats, else e4m3 with a float32 scale "
            "per 128, as DeepSeek-V3.2 stores them."
        )
    if any(group.window_tokens for group in model.layers):
        notes.append(
            "A window is counted in whole pages wherever it begins: up to ceil((W - 1) / P) + 1 of them; an engine "
            "that never frees pages behind the window needs as much as without one. B/token is before windows fill."
        )
    if any(group.state_bytes is None for group in model.layers):
        notes.append("The configuration does not give the size of the linear layers' states: they are not counted.")
    if not model.uniform:
        notes.append("latentkv plans for this model and cannot run it: its own cache has one row in every layer.")
    return notes


def _estimate_notes(model: Model, deployment: Deployment) -> list[str]:
    notes = []
    weights = deployment.weights
    if weights in WEIGHT_FORMATS and model.params_total is not None:
        notes.append(
            f"Weights are an estimate: all {model.params_total:,} parameters in {weights} "
            f"({WEIGHT_FORMATS[weights].explained})."
        )
    if deployment.activation_bytes is None:
        notes.append(
            f"Step is an estimate of activations and workspace for {deployment.step_tokens:,} new tokens at once, "
            "with what --reserve keeps free; --activations states a measured figure."
        )
        missing = step_sizes(model).missing
        if missing:
            notes.append(f"Not in the configuration, and so not in that estimate: {', '.join(missing)}.")
    return notes


def _context_notes(model: Model, context_tokens: int, longest_fitting: int) -> list[str]:
    longest = model.max_context_tokens
    if longest is not None and context_tokens > longest:
        return [f"{context_tokens:,} tokens are more than this model's longest context of {longest:,}."]
    if longest is not None and longest_fitting > longest:
        return [f"Contexts are shown as far as memory goes; the model's own longest is {longest:,} tokens."]
    return []
