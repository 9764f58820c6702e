"""transformers as a contender: the same weights, and a cache filled without computing it. Imports it when called."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import time
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from latentkv.errors import OptionError, UnsupportedModelError, sentence
from latentkv.models.weights import WeightSource

# Fields of ours that transformers' configurations do not have, or that the choice of class says already.
_NOT_THEIRS = ("model_type", "rope_interleave", "architectures")
# What cached keys and values are filled with: the time does not depend on it, as long as it is a normal number.
_FILLING = 0.01


def transformers_version() -> str:
    """The installed version. Raises OptionError without transformers."""
    if importlib.util.find_spec("transformers") is None:
        remedy = "Install transformers, or leave --against out."
        raise OptionError(sentence("--against transformers", expected="the package", got="nothing", remedy=remedy))
    return importlib.metadata.version("transformers")


class TransformersPeer:
    """A dense checkpoint in transformers, computing in `dtype` with its default attention (SDPA).

    Raises UnsupportedModelError for a mixture of experts and for architectures that transformers does not know.
    """

    def __init__(self, config: Mapping[str, Any], source: WeightSource, dtype: torch.dtype) -> None:
        import transformers

        transformers_version()
        if any(".experts." in name for name in source.names()):
            raise UnsupportedModelError(sentence("--against transformers", expected="a dense model", got="experts"))
        fields = {name: value for name, value in config.items() if name not in _NOT_THEIRS}
        try:
            theirs = transformers.AutoConfig.for_model(config["model_type"], **fields)
            # Weights are put in below: drawing random ones first takes longer than everything else.
            with torch.device("meta"):
                factory: Any = transformers.AutoModelForCausalLM
                empty = factory.from_config(theirs, dtype=dtype)
        except (ValueError, KeyError) as error:
            raise UnsupportedModelError(f"transformers cannot run this model: {str(error).splitlines()[0]}") from error
        self._model: Any = _filled(empty, config, source, dtype)
        self.dtype = dtype

    @torch.inference_mode()
    def prefill(self, prompt: list[int], *, context_tokens: int) -> float:
        """Seconds for a prompt after `context_tokens` that are cached already."""
        past = self._cache(context_tokens)
        begin = time.perf_counter()
        self._model(torch.tensor([prompt]), past_key_values=past, use_cache=True, logits_to_keep=1)
        return time.perf_counter() - begin

    @torch.inference_mode()
    def decode(self, *, context_tokens: int, tokens: int) -> float:
        """Seconds for `tokens` tokens, one after the other, the likeliest each time."""
        past, token = self._cache(context_tokens), torch.tensor([[1]])
        begin = time.perf_counter()
        for _ in range(tokens):
            out = self._model(token, past_key_values=past, use_cache=True)
            token = out.logits[:, -1:].argmax(-1)
        return time.perf_counter() - begin

    def _cache(self, tokens: int) -> Any:
        """A cache that holds `tokens` tokens; their shapes are learned by computing one."""
        from transformers import DynamicCache

        if tokens == 0:
            return DynamicCache(config=self._model.config)
        past = self._model(torch.tensor([[1]]), use_cache=True).past_key_values
        for layer in past.layers:
            for name in ("keys", "values"):
                one: Tensor = getattr(layer, name)
                setattr(layer, name, one.new_full((*one.shape[:2], tokens, one.shape[3]), _FILLING))
        return past


def _filled(empty: Any, config: Mapping[str, Any], source: WeightSource, dtype: torch.dtype) -> Any:
    """The model with the checkpoint's tensors in `dtype`; frequency tables, which are not stored, are made anew."""
    model = empty.to_empty(device="cpu").eval()
    state = {name: source.get(name, dtype=dtype) for name in source.names()}
    if config.get("rope_interleave") and config["model_type"] == "llama":
        state = {name: _halves(name, tensor, model.config.head_dim) for name, tensor in state.items()}
    loaded = model.load_state_dict(state, strict=False, assign=True)
    model.tie_weights()
    tied = {"lm_head.weight"} if model.config.tie_word_embeddings else set()
    if set(loaded.missing_keys) - tied:
        raise UnsupportedModelError(
            sentence("--against transformers", expected="its own tensor names", got=f"no {loaded.missing_keys[0]}")
        )
    for module in model.modules():
        if hasattr(module, "inv_freq"):
            fresh = type(module)(model.config)
            module.load_state_dict(fresh.state_dict(), strict=False)
            module.inv_freq, module.original_inv_freq = fresh.inv_freq, fresh.inv_freq
    return model


def _halves(name: str, tensor: Tensor, head_dim: int) -> Tensor:
    """Rows laid out for interleaved RoPE in the order of transformers' Llama: first halves, then second ones."""
    if not name.endswith(("q_proj.weight", "k_proj.weight")):
        return tensor
    pairs = tensor.view(-1, head_dim // 2, 2, tensor.shape[1])
    return pairs.transpose(1, 2).reshape(tensor.shape)
