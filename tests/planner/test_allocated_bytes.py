"""Plans against bytes really allocated: this engine's cache in every format, and transformers' own caches."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers

from latentkv.cache.latent import LatentCache
from latentkv.cache.layout import FORMATS, PAGE_TOKENS, layout_for
from latentkv.planner.footprint import footprint
from latentkv.planner.model import model_from_config

CONTEXT_TOKENS = 37
COMMON: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "pad_token_id": None,
}
LATENT: dict[str, Any] = COMMON | {
    "num_key_value_heads": 4,
    "kv_lora_rank": 80,
    "q_lora_rank": 20,
    "qk_nope_head_dim": 12,
    "qk_rope_head_dim": 8,
    "v_head_dim": 10,
    "first_k_dense_replace": 3,
}
GROUPED: dict[str, Any] = COMMON | {"num_key_value_heads": 2, "head_dim": 24}


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("page_tokens", [PAGE_TOKENS[0], 16, PAGE_TOKENS[-1]])
@pytest.mark.parametrize("config", [LATENT, GROUPED, LATENT | {"kv_lora_rank": 7, "qk_rope_head_dim": 2}], ids=str)
def test_this_engine(format: str, page_tokens: int, config: dict[str, Any]) -> None:
    model = model_from_config("tiny", config, source="a test")
    plan = footprint(model.layers, format=format, page_tokens=page_tokens)
    layout = layout_for(model.geometry, format, page_tokens=page_tokens)
    cache = LatentCache(layout, layout.pages_for(CONTEXT_TOKENS))
    assert cache.size_bytes == plan.sequence_bytes(CONTEXT_TOKENS)
    assert cache.storage.untyped_storage().nbytes() == plan.sequence_bytes(CONTEXT_TOKENS)


@pytest.mark.parametrize(("dtype", "format"), [(torch.float32, "f32"), (torch.bfloat16, "bf16")])
@pytest.mark.parametrize(
    ("classes", "config"),
    [("DeepseekV2", LATENT), ("DeepseekV3", LATENT), ("MiniCPM3", LATENT), ("Llama", GROUPED), ("Qwen3", GROUPED)],
)
def test_transformers(classes: str, config: dict[str, Any], dtype: torch.dtype, format: str) -> None:
    """What its DynamicCache holds after a forward pass: latents and RoPE keys for MLA, keys and values otherwise."""
    settings = getattr(transformers, f"{classes}Config")(**config)
    torch.manual_seed(0)
    model = getattr(transformers, f"{classes}ForCausalLM")(settings).eval().to(dtype)
    tokens = torch.randint(COMMON["vocab_size"], (1, CONTEXT_TOKENS))
    with torch.no_grad():
        cache = model(tokens, use_cache=True).past_key_values
    held = [tensor for layer in cache.layers for tensor in (layer.keys, layer.values)]
    plan = footprint(
        model_from_config(classes, settings.to_dict(), source="a test").layers, format=format, page_tokens=1
    )
    assert sum(tensor.nbytes for tensor in held) == plan.sequence_bytes(CONTEXT_TOKENS)


def test_transformers_sliding_window() -> None:
    """Mistral keeps the last `window - 1` tokens beside the new one: the plan's window, one by one."""
    window = 16
    settings = transformers.MistralConfig(**GROUPED, sliding_window=window)
    model = transformers.MistralForCausalLM(settings).eval()
    tokens = torch.randint(COMMON["vocab_size"], (1, CONTEXT_TOKENS))
    with torch.no_grad():
        cache = model(tokens, use_cache=True).past_key_values
    held = sum(tensor.nbytes for layer in cache.layers for tensor in (layer.keys, layer.values))
    layers = model_from_config("Mistral", settings.to_dict(), source="a test").layers
    plan = footprint(layers, format="f32", page_tokens=1)
    assert [(group.count, group.window_tokens) for group in layers] == [(3, window)]
    assert held == plan.sequence_bytes(CONTEXT_TOKENS) - plan.bytes_per_token
