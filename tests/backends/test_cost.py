"""The arithmetic behind choosing a form, against numbers counted by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from latentkv.backends.base import Request
from latentkv.backends.cost import Prices, cheaper_form, head_cost, latent_cost
from latentkv.backends.isa import available_isas, find_isa
from latentkv.backends.native_prices import PRICES, native_prices
from latentkv.cache.layout import FORMATS

TINY = Request(
    kind="mla",
    num_heads=2,
    format="f32",
    page_tokens=4,
    query_dtype="float32",
    device="cpu",
    form="auto",
    kv_lora_rank=8,
    qk_rope_head_dim=4,
    qk_nope_head_dim=3,
    v_head_dim=5,
)
DEEPSEEK_V3 = Request(
    kind="mla",
    num_heads=128,
    format="bf16",
    page_tokens=64,
    query_dtype="bfloat16",
    device="cpu",
    form="auto",
    kv_lora_rank=512,
    qk_rope_head_dim=64,
    qk_nope_head_dim=128,
    v_head_dim=128,
)


def test_operations_counted_by_hand():
    """Two new tokens of a context of 10 make 9 + 10 pairs."""
    assert latent_cost(TINY, query_len=2, context_len=10) == 2 * 2 * (2 * (3 + 5) * 8 + 19 * (8 + 8 + 4))
    assert head_cost(TINY, query_len=2, context_len=10) == 2 * 2 * (10 * (3 + 5) * 8 + 19 * (3 + 4 + 5))


@pytest.mark.parametrize(("query", "context", "form"), [(1, 2, "latent"), (1, 8192, "latent"), (4096, 4096, "head")])
def test_decode_takes_the_latent_form_and_a_long_prompt_the_head_form(query, context, form):
    assert cheaper_form(DEEPSEEK_V3, query_len=query, context_len=context) == form


def test_a_short_chunk_after_a_long_context_is_not_worth_expanding_it():
    assert cheaper_form(DEEPSEEK_V3, query_len=16, context_len=32768) == "latent"
    assert cheaper_form(DEEPSEEK_V3, query_len=1024, context_len=32768) == "head"


def test_dear_projections_favour_the_form_that_has_fewer_of_them():
    """At 320 of 4096 tokens, expanding the context costs most: counted double it turns the choice."""
    sizes = {"query_len": 320, "context_len": 4096}
    assert cheaper_form(DEEPSEEK_V3, **sizes) == "head"
    assert cheaper_form(DEEPSEEK_V3, **sizes, prices=Prices(projection=2.2, expansion=2.2)) == "latent"
    plain, dear = (head_cost(DEEPSEEK_V3, **sizes, prices=Prices(expansion=factor)) for factor in (1.0, 2.0))
    assert dear - plain == 2 * 128 * 4096 * (128 + 128) * 512


def test_cheap_operations_over_latents_favour_the_latent_form():
    sizes = {"query_len": 512, "context_len": 8192}
    assert cheaper_form(DEEPSEEK_V3, **sizes) == "head"
    assert cheaper_form(DEEPSEEK_V3, **sizes, prices=Prices(projection=1.3, latent=0.4)) == "latent"
    plain, cheap = (latent_cost(DEEPSEEK_V3, **sizes, prices=Prices(latent=factor)) for factor in (1.0, 0.5))
    assert plain - cheap == 128 * (512 * 8192 - 512 * 511 // 2) * (512 + 512 + 64)


@pytest.mark.parametrize("isa", available_isas())
@pytest.mark.parametrize("query_dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("format", FORMATS)
def test_measured_prices_choose_clear_cases_as_all_do(format, query_dtype, isa):
    request = replace(DEEPSEEK_V3, format=format, query_dtype=query_dtype)
    prices = native_prices(request, find_isa(isa))
    assert cheaper_form(request, query_len=8, context_len=8192, prices=prices) == "latent"
    assert cheaper_form(request, query_len=4096, context_len=4096, prices=prices) == "head"


@pytest.mark.parametrize("isa", available_isas())
def test_codes_have_prices_of_their_own_where_they_are_multiplied_as_such(isa):
    prices = {
        (format, integer): native_prices(replace(DEEPSEEK_V3, format=format, integer=integer), find_isa(isa))
        for format in ("f32", "bf16", "int8")
        for integer in (True, False)
    }
    assert prices["bf16", True] == prices["bf16", False] != prices["int8", True]
    assert prices["int8", False] == prices["f32", True]
    assert all(price in PRICES.values() for price in prices.values())
