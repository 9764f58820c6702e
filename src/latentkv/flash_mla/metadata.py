"""What FlashMLA calls the tile scheduler metadata: made once per step, filled by its first use, reused by every layer.

FlashMLA checks at later uses that shapes are the same and trusts the caller on the lengths. Here the lengths are
compared too: a division of work made for other lengths would leave tokens out without a sign.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from latentkv.backends.base import Plan
from latentkv.errors import OptionError, ShapeError, StalePlanError, sentence
from latentkv.flash_mla.checks import INT32, check_flag, check_tensor

FRESH = "Call get_mla_metadata() once per step."
STALE = f"tile_scheduler_metadata was made for the former. {FRESH}"


@dataclass
class FlashMLASchedMeta:
    """Opaque to callers. Empty until the first use; bound to that use's sizes and lengths from then on.

    config: argument name -> size, flag or tuple of lengths that every later use must repeat
    plan:   the work of a dense step, shared by its layers; None for sparse calls, whose work depends on the indices
    """

    config: dict[str, object] = field(default_factory=dict)
    plan: Plan | None = None

    def bind(self, config: Mapping[str, object]) -> None:
        """Remember `config`, or raise StalePlanError naming the first argument that differs from an earlier one."""
        for name, value in config.items():
            if self.config.get(name, value) != value:
                raise StalePlanError(sentence(name, expected=_told(self.config[name]), got=_told(value), remedy=STALE))
        self.config.update(config)


def get_mla_metadata(
    cache_seqlens: Tensor | None = None,
    num_q_tokens_per_head_k: int | None = None,
    num_heads_k: int | None = None,
    num_heads_q: int | None = None,
    is_fp8_kvcache: bool = False,  # noqa: FBT001, FBT002 - FlashMLA's order
    topk: int | None = None,
) -> tuple[FlashMLASchedMeta, None]:
    """Metadata for one step's calls of `flash_mla_with_kvcache`, and None (FlashMLA's former `num_splits`).

    No argument is needed. Those of FlashMLA's earlier releases are accepted, and what they say is held to:
    cache_seqlens: [B] int32, context lengths of the step (not looked at for sparse calls, that is with `topk`)
    num_q_tokens_per_head_k: queries of one sequence times query heads of one KV head
    num_heads_k, num_heads_q, topk: KV heads, query heads, indices of a token

    is_fp8_kvcache: True for a cache of fp8 rows; False says nothing

    Raises ShapeError and OptionError.
    """
    check_flag("is_fp8_kvcache", is_fp8_kvcache)
    meta = FlashMLASchedMeta()
    if is_fp8_kvcache:
        meta.config["is_fp8_kvcache"] = True
    if cache_seqlens is not None:
        check_tensor("cache_seqlens", cache_seqlens, shape=("B",), dtypes=INT32)
        meta.config["cache_seqlens" if topk is None else "batch size"] = (
            lengths_of(cache_seqlens) if topk is None else cache_seqlens.numel()
        )
    sizes = {
        "num_q_tokens_per_head_k": num_q_tokens_per_head_k,
        "num_heads_k": num_heads_k,
        "num_heads_q": num_heads_q,
        "topk": topk,
    }
    for name, size in sizes.items():
        if size is None:
            continue
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise OptionError(sentence(name, expected="a positive integer", got=repr(size)))
        meta.config[name] = size
    return meta, None


def check_metadata(metadata: object, num_splits: object) -> FlashMLASchedMeta:
    """`metadata`, if both are what `get_mla_metadata` returned; raises ShapeError."""
    if not isinstance(metadata, FlashMLASchedMeta):
        got = f"a {type(metadata).__name__}"
        raise ShapeError(sentence("tile_scheduler_metadata", expected="a FlashMLASchedMeta", got=got, remedy=FRESH))
    if num_splits is not None:
        raise ShapeError(sentence("num_splits", expected=None, got=f"a {type(num_splits).__name__}", remedy=FRESH))
    return metadata


def lengths_of(lengths: Tensor | None) -> tuple[int, ...] | None:
    """Lengths as a value that can be compared."""
    return None if lengths is None else tuple(lengths.tolist())


def _told(value: object) -> str:
    shown = 8
    if isinstance(value, tuple) and len(value) > shown:
        return f"{list(value[:shown])} and {len(value) - shown} more"
    return str(list(value)) if isinstance(value, tuple) else str(value)
