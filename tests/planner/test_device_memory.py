"""What a device holds: sums by hand, shares in parallel, and the reverse questions against the forward sum."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latentkv.cache.layout import FORMATS, PAGE_TOKENS
from latentkv.errors import ConfigError, OptionError
from latentkv.planner.activations import step_sizes
from latentkv.planner.catalog import find_model
from latentkv.planner.memory import Deployment, device_weight_bytes, memory_need, most_context, most_users
from latentkv.planner.parallel import Parallel, alternatives, device_cache_bytes, device_footprint
from latentkv.planner.units import GIB
from latentkv.planner.weights import WEIGHT_FORMATS, attention_share, weight_bytes

V3 = find_model("deepseek-ai/DeepSeek-V3")
LLAMA = find_model("meta-llama/Llama-3.1-70B")
MODELS = [
    find_model(name)
    for name in (
        "deepseek-ai/DeepSeek-V2-Lite",
        "deepseek-ai/DeepSeek-V3.2",
        "meta-llama/Llama-3.1-8B",
        "openai/gpt-oss-20b",
        "mistralai/Mistral-7B-v0.1",
        "moonshotai/Kimi-Linear-48B-A3B-Instruct",
    )
]
PARALLEL = [
    Parallel(),
    Parallel(tensor=4),
    Parallel(tensor=8, context=4),
    Parallel(data=8),
    Parallel(tensor=2, pipeline=3, data=2, context=2),
]
deployments = st.builds(
    Deployment,
    format=st.sampled_from(list(FORMATS)),
    page_tokens=st.sampled_from(PAGE_TOKENS),
    weights=st.sampled_from(["none", "bf16", "int4"]),
    parallel=st.sampled_from(PARALLEL),
    step_tokens=st.integers(1, 4096),
    reserve_bytes=st.integers(0, GIB),
)


def cache_bytes(model_name: str, parallel: Parallel, *, users: int, context_tokens: int) -> int:
    cache = device_footprint(find_model(model_name), parallel, format="bf16", page_tokens=64)
    return device_cache_bytes(cache, parallel, users=users, context_tokens=context_tokens)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(MODELS), deployments, st.integers(1, 300), st.integers(1, 300_000), st.integers(0, 64))
def test_the_need_never_falls_with_users_or_context(model, deployment, users, context, more) -> None:  # type: ignore[no-untyped-def]
    need = memory_need(model, deployment, users=users, context_tokens=context)
    more_users = memory_need(model, deployment, users=users + more, context_tokens=context)
    more_context = memory_need(model, deployment, users=users, context_tokens=context + more)
    assert need.total == need.weights + need.activations + need.workspace + need.reserve + need.cache
    assert more_users.total >= need.total
    assert more_context.total >= need.total


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(MODELS), deployments, st.integers(1, 300_000), st.integers(1, 200 * GIB))
def test_most_users_inverts_the_sum(model, deployment, context, memory) -> None:  # type: ignore[no-untyped-def]
    users = most_users(model, deployment, memory_bytes=memory, context_tokens=context)
    if users:
        assert memory_need(model, deployment, users=users, context_tokens=context).total <= memory
    assert memory_need(model, deployment, users=users + 1, context_tokens=context).total > memory


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(MODELS), deployments, st.integers(1, 300), st.integers(1, 200 * GIB))
def test_most_context_inverts_the_sum(model, deployment, users, memory) -> None:  # type: ignore[no-untyped-def]
    longest = most_context(model, deployment, memory_bytes=memory, users=users)
    if longest is None:
        assert model.name == "mistralai/Mistral-7B-v0.1"
        return
    if longest:
        assert memory_need(model, deployment, users=users, context_tokens=longest).total <= memory
    assert memory_need(model, deployment, users=users, context_tokens=longest + 1).total > memory


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(MODELS), deployments, st.integers(1, 300), st.integers(1, 100_000))
def test_the_forward_answer_comes_back(model, deployment, users, context) -> None:  # type: ignore[no-untyped-def]
    total = memory_need(model, deployment, users=users, context_tokens=context).total
    assert most_users(model, deployment, memory_bytes=total, context_tokens=context) >= users
    assert (most_context(model, deployment, memory_bytes=total, users=users) or 1 << 60) >= context


def test_tokens_in_memory_worked_out_by_hand() -> None:
    cache_only = Deployment(weights="none", activation_bytes=0, page_tokens=64)
    page_bytes = 64 * 61 * 1152
    assert most_context(V3, cache_only, memory_bytes=10 * page_bytes, users=1) == 640
    assert most_context(V3, cache_only, memory_bytes=10 * page_bytes - 1, users=1) == 576
    assert most_users(V3, cache_only, memory_bytes=10 * page_bytes, context_tokens=65) == 5
    assert most_users(V3, cache_only, memory_bytes=page_bytes - 1, context_tokens=1) == 0


def test_weights() -> None:
    assert weight_bytes(V3, "bf16") == 2 * 671_026_419_200
    assert weight_bytes(V3, "fp8") == 671_026_419_200 + -(-671_026_419_200 // 16_384) * 4
    assert weight_bytes(V3, "int4") == 671_026_419_200 // 32 * 18
    assert weight_bytes(V3, "14GiB") == 14 * GIB
    assert weight_bytes(V3, "none") == 0
    assert weight_bytes(replace(V3, weights_bytes=77), "stored") == 77
    assert {"bf16", "fp8", "int8", "int4"} <= WEIGHT_FORMATS.keys()


def test_weights_that_are_not_known() -> None:
    with pytest.raises(ConfigError, match=r"number of parameters is not known; .* --weights 14GiB"):
        weight_bytes(replace(V3, params_total=None), "bf16")
    with pytest.raises(ConfigError, match="no weight files"):
        weight_bytes(V3, "stored")
    with pytest.raises(OptionError, match="weights: expected f32, bf16"):
        weight_bytes(V3, "int5")


def test_attention_is_a_known_part_of_the_parameters() -> None:
    # DeepSeek-V3, one layer: 7168*1536 + 1536 + 1536*128*192 + 7168*576 + 512 + 512*128*256 + 128*128*7168.
    one_layer = 11_010_048 + 1536 + 37_748_736 + 4_128_768 + 512 + 16_777_216 + 117_440_512
    assert attention_share(V3) == pytest.approx(61 * one_layer / 671_026_419_200)


def test_a_latent_is_on_every_tensor_rank_and_kv_heads_are_not() -> None:
    alone = cache_bytes("deepseek-ai/DeepSeek-V3", Parallel(), users=8, context_tokens=6400)
    assert alone == 8 * 6400 * 61 * 1152
    assert cache_bytes("deepseek-ai/DeepSeek-V3", Parallel(tensor=8), users=8, context_tokens=6400) == alone
    assert cache_bytes("deepseek-ai/DeepSeek-V3", Parallel(data=8), users=8, context_tokens=6400) == alone // 8
    split = Parallel(tensor=4, context=4)
    assert cache_bytes("deepseek-ai/DeepSeek-V3", split, users=8, context_tokens=6400) == alone // 4
    llama = cache_bytes("meta-llama/Llama-3.1-70B", Parallel(), users=1, context_tokens=64)
    for ranks, share in ((2, 2), (8, 8), (16, 8)):
        parallel = Parallel(tensor=ranks)
        assert cache_bytes("meta-llama/Llama-3.1-70B", parallel, users=1, context_tokens=64) == llama // share
    # 16 ranks of which 2 split tokens leave 8 to split the 8 heads.
    both = Parallel(tensor=16, context=2)
    assert cache_bytes("meta-llama/Llama-3.1-70B", both, users=1, context_tokens=128) == llama // 8


def test_the_fullest_device_is_counted() -> None:
    v3 = "deepseek-ai/DeepSeek-V3"
    assert cache_bytes(v3, Parallel(pipeline=4), users=1, context_tokens=64) == 16 * 1152 * 64
    assert cache_bytes(v3, Parallel(data=4), users=5, context_tokens=64) == 2 * 61 * 1152 * 64
    three_pages_on_two_ranks = Parallel(tensor=2, context=2)
    assert cache_bytes(v3, three_pages_on_two_ranks, users=1, context_tokens=129) == 2 * 61 * 1152 * 64


def test_weights_on_a_device() -> None:
    total, share = weight_bytes(V3, "bf16"), attention_share(V3)
    split = device_weight_bytes(V3, Deployment(parallel=Parallel(tensor=4, pipeline=2)))
    assert split == -(-total // 8)
    replicated = device_weight_bytes(V3, Deployment(parallel=Parallel(data=8)))
    assert replicated == pytest.approx(total * (share + (1 - share) / 8), rel=1e-9)


def test_alternatives_use_the_same_devices() -> None:
    asked = Parallel(tensor=4, data=2, pipeline=2)
    ways = alternatives(asked)
    assert ways[0] == asked
    assert {way.devices for way in ways} == {16}
    assert [way.name for way in ways[1:]] == ["TP 8, PP 2", "PP 2, DP-attention 8", "TP 8, PP 2, CP 8"]
    assert alternatives(Parallel()) == (Parallel(),)


def test_a_step_by_hand() -> None:
    need = step_sizes(V3).need(step_tokens=10, users=3, context_tokens=100)
    residual, feedforward = 3 * 10 * 7168, 2 * 10 * 18_432
    attention = 10 * (128 * (192 + 128) + 576)
    assert need.activation_bytes == 2 * (residual + max(attention, feedforward)) + 4 * 3 * 129_280
    assert need.workspace_bytes == 2 * 100 * 128 * 256 + 4 * 8 * 3 * 128 * 513
    assert need.missing == ()
    assert step_sizes(LLAMA).need(step_tokens=1, users=1, context_tokens=9).workspace_bytes == 4 * 8 * 64 * 129


@pytest.mark.parametrize("sizes", [{"tensor": 0}, {"data": -1}, {"tensor": 8, "context": 3}, {"context": 2}])
def test_impossible_splits(sizes: dict[str, int]) -> None:
    with pytest.raises(OptionError, match="parallelism"):
        Parallel(**sizes)


@pytest.mark.parametrize(("users", "context"), [(0, 1), (1, 0), (-1, 5)])
def test_nobody_and_nothing(users: int, context: int) -> None:
    with pytest.raises(OptionError, match="expected 1 or more"):
        memory_need(V3, Deployment(), users=users, context_tokens=context)
