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
    """A line of a plot: `values[i]` at a context of `contexts[i]` tokens, for `of` (a model or twin) in `format`."""

    of: str
    format: str
    contexts: tuple[int, ...]
    values: tuple[int, ...]
    twin: bool = False

    @property
    def label(self) -> str:
        """ "DeepSeek-V3, bf16"."""
        return f"{self.of}, {self.format}"


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
    curves = [_cache_curve(model, format, page_tokens, contexts) for model in models for format in formats]
    if with_twins and models[0].uniform:
        for geometry in twins(models[0].geometry):
            layers = (replace(models[0].layers[0], geometry=geometry),)
            twin = replace(models[0], name=f"as {attention_name(geometry)}", layers=layers)
            curves.append(replace(_cache_curve(twin, formats[0], page_tokens, contexts), twin=True))
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
            curves.append(Curve(_short_name(model), format, contexts, tuple(users)))
    return tuple(curves)


def merged(curves: Sequence[Curve]) -> tuple[Curve, ...]:
    """The curves, those of one model with equal values as one ("fp8 = int8"): a line cannot be seen behind another."""
    formats: dict[tuple[str, tuple[int, ...]], list[Curve]] = {}
    for curve in curves:
        formats.setdefault((curve.of, curve.values), []).append(curve)
    return tuple(replace(same[0], format=" = ".join(curve.format for curve in same)) for same in formats.values())


def _cache_curve(model: Model, format: str, page_tokens: int, contexts: tuple[int, ...]) -> Curve:
    cache = footprint(model.layers, format=format, page_tokens=page_tokens)
    return Curve(_short_name(model), format, contexts, tuple(cache.sequence_bytes(tokens) for tokens in contexts))


def _short_name(model: Model) -> str:
    return model.name.rpartition("/")[2]
