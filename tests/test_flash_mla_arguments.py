"""Every argument of latentkv.flash_mla given wrongly: an error that names it, what was expected and what came."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import latentkv.flash_mla
from latentkv.errors import LatentKVError, OptionError, ShapeError
from latentkv.flash_mla import flash_mla_sparse_fwd, flash_mla_with_kvcache, get_mla_metadata

B, S_Q, H, G, D, PAGES, P, K = 2, 3, 4, 2, 24, 6, 8, 5


def int32(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


def dense_arguments() -> dict[str, Any]:
    return {
        "q": torch.zeros(B, S_Q, H, D),
        "k_cache": torch.zeros(PAGES, P, G, D),
        "block_table": torch.arange(PAGES, dtype=torch.int32).view(B, -1),
        "cache_seqlens": int32(20, 5),
        "head_dim_v": 16,
        "tile_scheduler_metadata": get_mla_metadata()[0],
        "num_splits": None,
        "softmax_scale": 0.5,
        "causal": True,
        "is_fp8_kvcache": False,
    }


def sparse_arguments() -> dict[str, Any]:
    return dense_arguments() | {
        "k_cache": torch.zeros(PAGES, P, 1, D),
        "block_table": None,
        "cache_seqlens": None,
        "causal": False,
        "indices": torch.zeros(B, S_Q, K, dtype=torch.int32),
        "attn_sink": torch.zeros(H),
        "extra_k_cache": torch.zeros(3, 1, 1, D),
        "extra_indices_in_kvcache": torch.zeros(B, S_Q, 2, dtype=torch.int32),
        "topk_length": int32(5, 0),
        "extra_topk_length": int32(2, 1),
    }


def prefill_arguments() -> dict[str, Any]:
    return {
        "q": torch.zeros(S_Q, H, D),
        "kv": torch.zeros(30, 1, D),
        "indices": torch.zeros(S_Q, 1, K, dtype=torch.int32),
        "sm_scale": 0.5,
        "d_v": 16,
        "attn_sink": torch.zeros(H),
        "topk_length": int32(0, 5, 1),
    }


# Bad for any tensor, whatever its shape.
NOT_TENSORS: dict[str, Callable[[Tensor], object]] = {
    "a list": lambda tensor: tensor.tolist(),
    "no CPU tensor": lambda tensor: tensor.to("meta"),
    "float64": lambda tensor: tensor.double(),
    "int64": lambda tensor: tensor.long(),
    "one dimension more": lambda tensor: tensor[None],
}

DENSE: list[tuple[str, object, type[LatentKVError], str]] = [
    ("q", None, ShapeError, "got None"),
    ("q", torch.zeros(B, S_Q, H, D, dtype=torch.float16), ShapeError, "float16"),
    ("q", torch.zeros(B, S_Q, 3, D), ShapeError, "multiple of k_cache's 2 KV heads"),
    ("q", torch.zeros(B, S_Q, 0, D), ShapeError, "0 heads"),
    ("k_cache", torch.zeros(PAGES, P, G, D + 1), ShapeError, str(D)),
    ("k_cache", torch.zeros(PAGES, P, G, D, dtype=torch.bfloat16), ShapeError, "bfloat16"),
    ("k_cache", torch.zeros(PAGES, P, 0, D), ShapeError, "0 KV heads"),
    ("k_cache", torch.zeros(PAGES, P, D, G).transpose(2, 3), ShapeError, "contiguous last dimension"),
    ("k_cache", torch.zeros(0, P, G, D), ShapeError, "block_table"),
    ("block_table", None, ShapeError, "got None"),
    ("block_table", torch.zeros(B + 1, 3, dtype=torch.int32), ShapeError, "2, max_pages"),
    ("block_table", torch.tensor([[0, 1, PAGES], [0, 0, 0]], dtype=torch.int32), ShapeError, r"block_table\[0, 2\]"),
    ("block_table", torch.tensor([[0, 1, 2], [-1, 0, 0]], dtype=torch.int32), ShapeError, r"block_table\[1, 0\]"),
    ("block_table", torch.zeros(B, 2, dtype=torch.int32), ShapeError, r"cache_seqlens\[0\]: expected 0 to 16"),
    ("cache_seqlens", None, ShapeError, "got None"),
    ("cache_seqlens", int32(20, 5, 5), ShapeError, r"\[2\]"),
    ("cache_seqlens", int32(20, 25), ShapeError, r"cache_seqlens\[1\]: expected 0 to 24 .*got 25"),
    ("cache_seqlens", int32(-1, 5), ShapeError, r"cache_seqlens\[0\]"),
    ("head_dim_v", 0, OptionError, "1 to 24"),
    ("head_dim_v", D + 1, OptionError, "1 to 24"),
    ("head_dim_v", 16.0, OptionError, "16.0"),
    ("tile_scheduler_metadata", None, ShapeError, "Call get_mla_metadata"),
    ("tile_scheduler_metadata", int32(1, 2), ShapeError, "a Tensor"),
    ("num_splits", int32(0, 1), ShapeError, "expected None"),
    ("softmax_scale", "1", OptionError, "finite number"),
    ("softmax_scale", True, OptionError, "by keyword"),
    ("softmax_scale", float("nan"), OptionError, "nan"),
    ("softmax_scale", float("inf"), OptionError, "inf"),
    ("causal", 1, OptionError, "True or False"),
    ("causal", None, OptionError, "True or False"),
    ("is_fp8_kvcache", None, OptionError, "True or False"),
    (
        "is_fp8_kvcache",
        True,
        ShapeError,
        r"\[pages, P, G, 36\] of float8_e4m3fn or uint8 or int8.* A row is head_dim_v e4m3",
    ),
    *((name, sparse_arguments()[name], OptionError, "None without indices") for name in ("attn_sink", "extra_k_cache")),
    ("topk_length", int32(1, 1), OptionError, "None without indices"),
    ("extra_topk_length", int32(1, 1), OptionError, "None without"),
    ("extra_indices_in_kvcache", torch.zeros(B, S_Q, 2, dtype=torch.int32), OptionError, "None without"),
]
SPARSE: list[tuple[str, object, type[LatentKVError], str]] = [
    ("k_cache", torch.zeros(PAGES, P, 2, D), ShapeError, "1, 24"),
    ("k_cache", torch.zeros(PAGES, P, 1, D + 1), ShapeError, str(D)),
    ("k_cache", torch.zeros(PAGES, P * D + 5)[:, : P * D].unflatten(1, (P, 1, D)), ShapeError, "whole number of rows"),
    ("k_cache", torch.zeros(1, 1, 1, D).expand(2**18, 2**14, 1, D), ShapeError, "whole number of rows"),
    ("indices", torch.zeros(B, S_Q + 1, K, dtype=torch.int32), ShapeError, "2, 3, K"),
    ("causal", True, OptionError, "False with indices"),
    ("attn_sink", torch.zeros(H + 1), ShapeError, r"\[4\]"),
    ("attn_sink", torch.zeros(H, dtype=torch.bfloat16), ShapeError, "float32"),
    ("topk_length", int32(5, 5, 5), ShapeError, r"\[2\]"),
    ("topk_length", int32(5, 6), ShapeError, r"topk_length\[1\]: expected 0 to 5"),
    ("topk_length", int32(-1, 5), ShapeError, r"topk_length\[0\]"),
    ("extra_k_cache", torch.zeros(3, 1, 1, D, dtype=torch.bfloat16), ShapeError, "bfloat16"),
    ("extra_k_cache", None, OptionError, "None without extra_k_cache"),
    ("extra_indices_in_kvcache", None, ShapeError, "got None"),
    ("extra_indices_in_kvcache", torch.zeros(B, 1, 2, dtype=torch.int32), ShapeError, "2, 3, K"),
    ("extra_topk_length", int32(2, 3), ShapeError, r"extra_topk_length\[1\]: expected 0 to 2"),
]
PREFILL: list[tuple[str, object, type[LatentKVError], str]] = [
    ("kv", torch.zeros(30, 2, D), ShapeError, "s_kv, 1, 24"),
    ("kv", torch.zeros(30, 1, D, dtype=torch.bfloat16), ShapeError, "float32"),
    ("kv", torch.zeros(D, 1, 30).transpose(0, 2), ShapeError, "contiguous last dimension"),
    ("indices", torch.zeros(S_Q, 2, K, dtype=torch.int32), ShapeError, "3, 1, K"),
    ("sm_scale", None, OptionError, "finite number"),
    ("sm_scale", False, OptionError, "finite number"),
    ("d_v", 512, OptionError, "1 to 24"),
    ("attn_sink", torch.zeros(1), ShapeError, r"\[4\]"),
    ("topk_length", int32(0, 5), ShapeError, r"\[3\]"),
    ("topk_length", int32(0, 5, 6), ShapeError, r"topk_length\[2\]"),
]


def label(value: object) -> str | None:
    return value if isinstance(value, str) else type(value).__name__ if isinstance(value, Tensor) else repr(value)


def refused(call: Callable[..., object], arguments: dict[str, Any], error: type[LatentKVError], match: str) -> None:
    with pytest.raises(error, match=match):
        call(**arguments)


@pytest.mark.parametrize(("name", "value", "error", "match"), DENSE, ids=label)
def test_dense(name: str, value: object, error: type[LatentKVError], match: str) -> None:
    refused(flash_mla_with_kvcache, dense_arguments() | {name: value}, error, match)


@pytest.mark.parametrize(("name", "value", "error", "match"), SPARSE, ids=label)
def test_sparse(name: str, value: object, error: type[LatentKVError], match: str) -> None:
    refused(flash_mla_with_kvcache, sparse_arguments() | {name: value}, error, match)


@pytest.mark.parametrize(("name", "value", "error", "match"), PREFILL, ids=label)
def test_prefill(name: str, value: object, error: type[LatentKVError], match: str) -> None:
    refused(flash_mla_sparse_fwd, prefill_arguments() | {name: value}, error, match)


@pytest.mark.parametrize("spoil", NOT_TENSORS)
@pytest.mark.parametrize(
    ("call", "arguments"),
    [
        (flash_mla_with_kvcache, dense_arguments),
        (flash_mla_with_kvcache, sparse_arguments),
        (flash_mla_sparse_fwd, prefill_arguments),
    ],
    ids=["dense", "sparse", "prefill"],
)
def test_every_tensor_must_be_one(
    call: Callable[..., object], arguments: Callable[[], dict[str, Any]], spoil: str
) -> None:
    for name, value in arguments().items():
        if isinstance(value, Tensor):
            bad = NOT_TENSORS[spoil](value)
            refused(call, arguments() | {name: bad}, ShapeError, rf"^{name}: expected a CPU tensor \[")


def test_the_good_arguments_are_good() -> None:
    flash_mla_with_kvcache(**dense_arguments())
    flash_mla_with_kvcache(**sparse_arguments())
    flash_mla_sparse_fwd(**prefill_arguments())


def test_a_refused_call_leaves_the_metadata_unused() -> None:
    arguments = dense_arguments()
    refused(flash_mla_with_kvcache, arguments | {"cache_seqlens": int32(20, 25)}, ShapeError, "cache_seqlens")
    flash_mla_with_kvcache(**arguments)


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"cache_seqlens": [1, 2]}, ShapeError, "cache_seqlens: expected a CPU tensor"),
        ({"cache_seqlens": torch.tensor([1, 2])}, ShapeError, "int32"),
        ({"num_q_tokens_per_head_k": 0}, OptionError, "positive integer"),
        ({"num_heads_k": 1.5}, OptionError, "positive integer"),
        ({"num_heads_q": True}, OptionError, "positive integer"),
        ({"topk": -1}, OptionError, "positive integer"),
        ({"is_fp8_kvcache": None}, OptionError, "True or False"),
    ],
    ids=str,
)
def test_metadata(arguments: dict[str, Any], error: type[LatentKVError], match: str) -> None:
    refused(get_mla_metadata, arguments, error, match)


@pytest.mark.parametrize("call", [get_mla_metadata, flash_mla_with_kvcache, flash_mla_sparse_fwd])
def test_unknown_arguments_are_errors(call: Callable[..., object]) -> None:
    with pytest.raises(TypeError, match="block_size"):
        call(block_size=64)


def test_no_gradient_flows() -> None:
    arguments = dense_arguments()
    out, lse = flash_mla_with_kvcache(**arguments | {"q": arguments["q"].requires_grad_()})
    assert not out.requires_grad
    assert not lse.requires_grad


def test_the_public_names() -> None:
    assert latentkv.flash_mla.__all__ == [
        "FlashMLASchedMeta",
        "flash_mla_sparse_fwd",
        "flash_mla_with_kvcache",
        "get_mla_metadata",
    ]
