"""Writes tiny GGUF files from Hugging Face tensors and configurations, laid out as llama.cpp's converter does.

Written from the format's description and independent of the reader under test: names are spelled out here again.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch

PARTS = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "self_attn.q_a_proj": "attn_q_a",
    "self_attn.q_a_layernorm": "attn_q_a_norm",
    "self_attn.q_b_proj": "attn_q_b",
    "self_attn.kv_a_proj_with_mqa": "attn_kv_a_mqa",
    "self_attn.kv_a_layernorm": "attn_kv_a_norm",
    "self_attn.kv_b_proj": "attn_kv_b",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "mlp.gate": "ffn_gate_inp",
    "mlp.shared_experts.gate_proj": "ffn_gate_shexp",
    "mlp.shared_experts.up_proj": "ffn_up_shexp",
    "mlp.shared_experts.down_proj": "ffn_down_shexp",
}
TOKENS = ["<unk>", "<s>", "</s>", "a", "b", "c", "ab", "Ġ", "Ċ", "é"]


def write_gguf(
    path: Path,
    *,
    architecture: str = "llama",
    fields: Mapping[str, Any] | None = None,
    tensors: Mapping[str, np.ndarray] | None = None,
    quantised: gguf.GGMLQuantizationType | None = None,
    tokenizer: Mapping[str, Any] | None = None,
) -> Path:
    """A GGUF file; `fields` get the architecture's prefix, `tokenizer` that of the tokenizer's keys."""
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in (fields or {}).items():
        _add(writer, f"{architecture}.{key}", value)
    for key, value in (tokenizer or {}).items():
        _add(writer, key if key == "chat_template" else f"tokenizer.ggml.{key}", value)
    for name, array in (tensors or {}).items():
        if quantised is not None and array.ndim > 1 and array.dtype == np.float32:
            writer.add_tensor(name, gguf.quants.quantize(array, quantised), raw_dtype=quantised)
        else:
            writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    adders: tuple[tuple[type, Callable[[str, Any], None]], ...] = (
        (bool, writer.add_bool),
        (int, writer.add_uint32),
        (float, writer.add_float32),
        (str, writer.add_string),
        (list, writer.add_array),
    )
    if key == "chat_template":
        writer.add_chat_template(value)
        return
    next(add for kind, add in adders if isinstance(value, kind))(key, value)


def from_hf(
    tensors: Mapping[str, torch.Tensor], *, heads: int, nope: int = 0, split_kv_b: bool = False
) -> dict[str, np.ndarray]:
    """GGUF names and arrays for a Hugging Face state dict with one tensor per expert."""
    out: dict[str, np.ndarray] = {}
    experts: dict[str, list[np.ndarray]] = {}
    for name, tensor in sorted(tensors.items(), key=lambda item: _natural(item[0])):
        array = tensor.float().numpy()
        expert = re.match(r"model\.layers\.(\d+)\.mlp\.experts\.\d+\.(gate|up|down)_proj\.weight", name)
        if expert:
            experts.setdefault(f"blk.{expert[1]}.ffn_{expert[2]}_exps.weight", []).append(array)
        elif split_kv_b and "kv_b_proj" in name:
            layer = name.split(".")[2]
            per_head = array.reshape(heads, -1, array.shape[1])
            keys, values = per_head[:, :nope], per_head[:, nope:]
            out[f"blk.{layer}.attn_k_b.weight"] = np.ascontiguousarray(keys.transpose(0, 2, 1))
            out[f"blk.{layer}.attn_v_b.weight"] = np.ascontiguousarray(values)
        else:
            out[gguf_name(name)] = array
    return out | {name: np.stack(parts) for name, parts in experts.items()}


def gguf_name(name: str) -> str:
    """The GGUF name of a Hugging Face tensor that is stored as it is."""
    whole = {
        "model.embed_tokens.weight": "token_embd.weight",
        "model.norm.weight": "output_norm.weight",
        "lm_head.weight": "output.weight",
    }
    if name in whole:
        return whole[name]
    _, _, layer, rest = name.split(".", 3)
    if rest.endswith("e_score_correction_bias"):
        return f"blk.{layer}.exp_probs_b.bias"
    part, _, suffix = rest.rpartition(".")
    return f"blk.{layer}.{PARTS[part]}.{suffix}"


def byte_level_tokenizer(**changes: Any) -> dict[str, Any]:
    """Metadata of a tiny byte-level BPE; a change to None leaves the key out."""
    fields = {
        "model": "gpt2",
        "pre": "gpt-2",
        "tokens": TOKENS,
        "token_type": [2, 3, 3] + [1] * (len(TOKENS) - 3),
        "merges": ["a b"],
        "bos_token_id": 1,
        "eos_token_id": 2,
    } | changes
    return {key: value for key, value in fields.items() if value is not None}


def damaged_copies(whole: bytes, positions: Iterable[int]) -> Iterator[tuple[str, bytes]]:
    """Copies of a file with the lowest bit or all bits flipped in one byte at each of these positions."""
    for at in positions:
        for mask in (0x01, 0xFF):
            yield f"byte {at} xor {mask:#x}", whole[:at] + bytes([whole[at] ^ mask]) + whole[at + 1 :]


def _natural(name: str) -> list[Any]:
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]
