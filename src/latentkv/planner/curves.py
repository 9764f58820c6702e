"""Numbers behind the plots: cache against context, and users against context, for models and formats.

Knows no plotting library.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from latentkv.planner.footprint import footprint
from latentkv.planner.layers import attention_name
from latentkv.planner.memory import Deployment, most_users
from latentkv.planner.model import Model
from latentkv.planner.twins import twins

SHORTEST_TOKENS = 1024
POINTS_PER_DOUBLING = 2


@dataclass(frozen=True, slots=True)
class Curve:
    """One line of a plot: `values[i]` at a context of `contexts[i]` tokens."""

    label: str
    contexts: tuple[int, ...]
    values: tuple[int, ...]


def contexts_up_to(longest_tokens: int) -> tuple[int, ...]:
    """Contexts evenly spaced on a logarithmic axis, from 1,024 (or less) to `longest_tokens`."""
    contexts, shortest = [], min(SHORTEST_TOKENS, longest_tokens)
    for index in range(200):
        tokens = round(shortest * 2 ** (index / POINTS_PER_DOUBLING))
        if tokens >= longest_tokens:
            break
        contexts.append(tokens)
    return (*contexts, longest_tokens)


def cache_curves(
    models: Sequence[Model], formats: Sequence[str], *, longest_tokens: int, page_tokens: int, with_twins: bool
) -> tuple[Curve, ...]:
    """Bytes of one sequence against its context; with the MHA, GQA and MQA of the first model's heads if asked."""
    contexts = contexts_up_to(longest_tokens)
    curves = [
        _cache_curve(_label(model, format), model, format, page_tokens, contexts)
        for model in models
        for format in formats
    ]
    if with_twins and models[0].uniform:
        for geometry in twins(models[0].geometry):
            twin = replace(models[0], layers=(replace(models[0].layers[0], geometry=geometry),))
            label = f"as {attention_name(geometry)}, {formats[0]}"
            curves.append(_cache_curve(label, twin, formats[0], page_tokens, contexts))
    return tuple(curves)


def user_curves(
    models: Sequence[Model],
    formats: Sequence[str],
    deployment: Deployment,
    *,
    memory_bytes: int,
    longest_tokens: int,
) -> tuple[Curve, ...]:
    """The most users against the context that each has, on devices of `memory_bytes`."""
    contexts = contexts_up_to(longest_tokens)
    curves = []
    for model in models:
        for format in formats:
            served = replace(deployment, format=format)
            users = [most_users(model, served, memory_bytes=memory_bytes, context_tokens=tokens) for tokens in contexts]
            curves.append(Curve(_label(model, format), contexts, tuple(users)))
    return tuple(curves)


def _cache_curve(label: str, model: Model, format: str, page_tokens: int, contexts: tuple[int, ...]) -> Curve:
    cache = footprint(model.layers, format=format, page_tokens=page_tokens)
    return Curve(label, contexts, tuple(cache.sequence_bytes(tokens) for tokens in contexts))


def _label(model: Model, format: str) -> str:
    return f"{model.name.rpartition('/')[2]}, {format}"
