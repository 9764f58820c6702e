"""`attend`: the one public call for attention over the paged cache. Validates, plans, selects a backend, runs it.

    query, cache, batch ──> validate ──> Request ──> registry.select ──> Backend.plan ──> Backend.run ──> Attended

What a row of the cache holds and whether an up-projection is given decide what is computed:

| rows of the cache | `up`   | query           | output       |                                                    |
|-------------------|--------|-----------------|--------------|----------------------------------------------------|
| latent, rope      | given  | [T, H, N + Rq]  | [T, H, V]    | MLA; the form (latent or head) is chosen by cost   |
| latent, rope      | None   | [T, H, L + Rq]  | [T, H, L]    | MLA, queries already absorbed, outputs still latent|
| key, value        | None   | [T, H, D]       | [T, H, V]    | GQA, MHA, MQA: the baseline                        |
"""

from __future__ import annotations

import math
from typing import Any, get_args

import torch
from torch import Tensor

from latentkv.backends.base import Attended, Form, Plan, Request
from latentkv.backends.registry import planned_by, select
from latentkv.cache.batch import Batch
from latentkv.cache.latent import LayerCache
from latentkv.errors import OptionError, ShapeError, sentence
from latentkv.ops.absorb import UpProjection

QUERY_DTYPES = (torch.float32, torch.bfloat16)


def attend(
    query: Tensor,
    cache: LayerCache,
    batch: Batch,
    *,
    scale: float,
    up: UpProjection | None = None,
    causal: bool = True,
    form: Form = "auto",
    backend: str = "auto",
    deterministic: bool = False,
    integer: bool = True,
    plan: Plan | None = None,
) -> Attended:
    """Attention of a ragged batch's new tokens over the paged cache, to which their rows have been written already.

    query:  [T, H, width] float32 | bfloat16, RoPE part last and already rotated, any strides; read only
    cache:  one layer's pages; read only
    batch:  which tokens belong to which sequence and where their context lies
    scale:  factor on the dot products, see ops/rope_scaling.py
    up:     W_UK [H, N, L] and W_UV [H, V, L]; see the table above
    causal: new token t of a sequence sees its context up to itself; otherwise all of it
    form:   "auto", "latent" or "head" (only where `up` is given)
    deterministic: a sequence's bits do not depend on the rest of the batch nor, with the native backend, on the number
            of threads; costs little
    integer: over rows of codes, queries and weights may be rounded to 15 bits and a sign where a kernel is faster so
            (docs/cache_formats.md has the error); False forbids it
    plan:   from `plan_attend`, for the same request, to be shared by the layers of a step

    Returns out [T, H, ...] in the query's dtype, lse [T, H] float32 (natural log, -inf where nothing is visible, with
    zeros in out) and the path that ran. Raises ShapeError for arguments that do not fit together, OptionError for an
    unknown form or backend, UnsupportedError when no backend can run it, StalePlanError for another call's plan.
    """
    request = request_for(query, cache, batch, up=up, form=form, deterministic=deterministic, integer=integer)
    if not math.isfinite(scale):
        raise OptionError(sentence("scale", expected="a finite number", got=scale))
    if plan is not None and backend not in ("auto", plan.backend):
        raise OptionError(sentence("backend", expected=f"auto or the plan's {plan.backend}", got=repr(backend)))
    chosen = select(request, name=backend if plan is None else plan.backend).backend
    if plan is None:
        plan = chosen.plan(request, batch)
    plan.check(request, batch)
    return chosen.run(plan, request, query, cache, batch, scale=scale, causal=causal, up=up)


def attend_planned(
    query: Tensor, cache: LayerCache, batch: Batch, *, plan: Plan, scale: float, up: UpProjection | None = None
) -> Attended:
    """`attend`, causal, for the layers of a step after the first: what `request_for` checked for one holds for all.

    The arguments have the shapes and dtypes of those that `plan.request` was made from; that is not checked again.
    Raises StalePlanError for a batch of other lengths.
    """
    plan.check_lengths(batch)
    backend = planned_by(plan)
    return backend.run(plan, plan.request, query, cache, batch, scale=scale, causal=True, up=up)


def plan_attend(request: Request, batch: Batch, *, backend: str = "auto") -> Plan:
    """Choose a backend and its forms for a batch, once for all layers that make the same request."""
    return select(request, name=backend).backend.plan(request, batch)


def request_for(
    query: Tensor,
    cache: LayerCache,
    batch: Batch,
    *,
    up: UpProjection | None = None,
    form: Form = "auto",
    deterministic: bool = False,
    integer: bool = True,
) -> Request:
    """The sizes of a call, checked against each other; what backends are asked with. Errors as in `attend`."""
    if form not in get_args(Form):
        raise OptionError(sentence("form", expected=f"one of {', '.join(get_args(Form))}", got=repr(form)))
    if query.ndim != 3 or query.shape[0] != batch.num_tokens:
        raise ShapeError(sentence("query", expected=f"[{batch.num_tokens}, H, width]", got=list(query.shape)))
    if not query.shape[1]:
        raise ShapeError(sentence("query", expected="one head or more", got=list(query.shape)))
    if query.dtype not in QUERY_DTYPES:
        raise ShapeError(sentence("query dtype", expected="float32 or bfloat16", got=query.dtype))
    if query.device != cache.rows.device:
        raise ShapeError(sentence("query device", expected=f"the cache's {cache.rows.device}", got=query.device))
    if batch.page_tokens != cache.page_tokens:
        raise ShapeError(
            sentence("batch page_tokens", expected=f"the cache's {cache.page_tokens}", got=batch.page_tokens)
        )
    heads, width = query.shape[1:]
    if "key" in cache.layout.part_names:
        sizes = _kv_sizes(cache, up, heads, width, form)
    else:
        sizes = _mla_sizes(cache, up, heads, width, form)
    return Request(
        num_heads=heads,
        format=cache.layout.format,
        page_tokens=cache.page_tokens,
        query_dtype=str(query.dtype).removeprefix("torch."),
        device=query.device.type,
        form=form,
        deterministic=deterministic,
        integer=integer,
        **sizes,
    )


def _kv_sizes(cache: LayerCache, up: UpProjection | None, heads: int, width: int, form: Form) -> dict[str, Any]:
    if up is not None or form != "auto":
        got = f"{'None' if up is None else 'an up-projection'} and {form!r}"
        raise ShapeError(sentence("up and form", expected="None and 'auto' for key/value rows", got=got))
    key, value = cache.layout.part("key").elements, cache.layout.part("value").elements
    if not width or key % width or heads % (key // width) or value % (key // width):
        raise ShapeError(
            sentence(
                "query",
                expected=f"[T, H, D] with G*D == {key}, G*V == {value} and H a multiple of G",
                got=f"[T, {heads}, {width}]",
            )
        )
    groups = key // width
    return {"kind": "kv", "num_key_value_heads": groups, "head_dim": width, "v_head_dim": value // groups}


def _mla_sizes(cache: LayerCache, up: UpProjection | None, heads: int, width: int, form: Form) -> dict[str, Any]:
    latent, rope = cache.layout.part("latent").elements, cache.layout.part("rope").elements
    if up is None:
        if form == "head":
            raise ShapeError(sentence("up", expected="an up-projection for the head form", got=None))
        nope = latent
        sizes: dict[str, Any] = {"kind": "absorbed"}
    else:
        nope = _check_up(up, heads, latent)
        sizes = {"kind": "mla", "qk_nope_head_dim": nope, "v_head_dim": up.w_uv.shape[1]}
    query_rope = width - nope
    if query_rope <= 0 or rope == 0:
        fits = query_rope == rope
    else:
        fits = rope % query_rope == 0 and heads % (rope // query_rope) == 0
    if not fits:
        what = "L" if up is None else "N"
        raise ShapeError(
            sentence("query", expected=f"[T, H, {what}+R] = [T, {heads}, {nope}+{rope}]", got=f"[T, {heads}, {width}]")
        )
    groups = rope // query_rope if query_rope else 1
    return sizes | {"kv_lora_rank": latent, "qk_rope_head_dim": rope, "rope_groups": groups}


def _check_up(up: UpProjection, heads: int, latent: int) -> int:
    for name, weight in (("up.w_uk", up.w_uk), ("up.w_uv", up.w_uv)):
        if not weight.dtype.is_floating_point:
            raise ShapeError(sentence(f"{name} dtype", expected="a float dtype", got=weight.dtype))
        if weight.ndim != 3 or weight.shape[0] != heads or weight.shape[2] != latent:
            raise ShapeError(sentence(name, expected=f"[{heads}, ..., {latent}]", got=list(weight.shape)))
    return up.w_uk.shape[1]
