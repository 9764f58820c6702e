"""ik_llama.cpp on the random model: its tokens per second of prefill and decode, printed case by case.

    python benchmarks/random_checkpoint.py random-model
    python benchmarks/peers/ik_llama.py write random-model random.gguf   # with gguf, safetensors and torch
    python benchmarks/peers/ik_llama.py run random.gguf                  # with ik-llama-cpp-python 0.1.5

Its Python package leaves `mla` of the model at 0 while the context's is 3, and then crashes: both are set here.
"""

from __future__ import annotations

import random
import sys
import time
from typing import Any

LAYERS, HEADS, VOCABULARY, CONTEXT = 8, 16, 32000, 4352
CASES = (1, 128, 512, 2048)
MLA, TOKENS, ROUNDS = 3, 24, 2
NORMS = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q_a_norm": "self_attn.q_a_layernorm",
    "attn_kv_a_norm": "self_attn.kv_a_layernorm",
}
MATRICES = {
    "attn_q_a": "self_attn.q_a_proj",
    "attn_q_b": "self_attn.q_b_proj",
    "attn_kv_a_mqa": "self_attn.kv_a_proj_with_mqa",
    "attn_kv_b": "self_attn.kv_b_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def write(folder: str, path: str) -> None:
    """The random checkpoint as a GGUF file, matrices in bfloat16."""
    import gguf
    import torch
    from safetensors.torch import load_file

    tensors = load_file(f"{folder}/model.safetensors")
    writer = gguf.GGUFWriter(path, "deepseek2")
    describe(writer)

    def matrix(name: str, source: str) -> None:
        data = tensors[source].to(torch.bfloat16).contiguous().view(torch.uint8).numpy()
        writer.add_tensor(f"{name}.weight", data, raw_shape=data.shape, raw_dtype=gguf.GGMLQuantizationType.BF16)

    def norm(name: str, source: str) -> None:
        writer.add_tensor(f"{name}.weight", tensors[source].float().numpy())

    matrix("token_embd", "model.embed_tokens.weight")
    matrix("output", "lm_head.weight")
    norm("output_norm", "model.norm.weight")
    for layer in range(LAYERS):
        for name, source in NORMS.items():
            norm(f"blk.{layer}.{name}", f"model.layers.{layer}.{source}.weight")
        for name, source in MATRICES.items():
            matrix(f"blk.{layer}.{name}", f"model.layers.{layer}.{source}.weight")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def describe(writer: Any) -> None:
    """Sizes, and a vocabulary of no meaning: prompts are token ids."""
    writer.add_block_count(LAYERS)
    writer.add_context_length(16384)
    writer.add_embedding_length(1024)
    writer.add_feed_forward_length(2816)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(64)
    writer.add_q_lora_rank(768)
    writer.add_kv_lora_rank(512)
    writer.add_key_length(192)
    writer.add_value_length(128)
    writer.add_leading_dense_block_count(LAYERS)
    writer.add_vocab_size(VOCABULARY)
    # Read, though every layer is dense.
    writer.add_expert_count(8)
    writer.add_expert_used_count(2)
    writer.add_expert_shared_count(1)
    writer.add_expert_feed_forward_length(1408)
    writer.add_expert_weights_scale(1.0)
    letters = [f"<0x{byte:02X}>" for byte in range(256)]
    words = [f"t{index}" for index in range(VOCABULARY - 259)]
    writer.add_tokenizer_model("llama")
    writer.add_token_list(["<unk>", "<s>", "</s>", *letters, *words])
    writer.add_token_scores([0.0] * VOCABULARY)
    writer.add_token_types([2, 3, 3] + [6] * 256 + [1] * len(words))
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)


def run(path: str) -> None:
    """Every case, twice."""
    from ik_llama_cpp import _ctypes_api as api
    from ik_llama_cpp import _internals as parts
    from ik_llama_cpp import llama

    for name, field in (("llama_model_default_params", "mla"), ("llama_context_default_params", "mla_attn")):
        setattr(api, name, with_mla(getattr(api, name), field))
    # Its package asks for AVX-VNNI before it allows flash attention, which ran here and is the faster.
    llama._cpu_has_avx_vnni = lambda: True
    # Kept: the context is freed with it.
    engine = llama.IkLlama(path, n_ctx=CONTEXT, n_threads=2)
    context = engine._context

    def feed(batch: Any) -> None:
        if context.decode(batch) != 0:
            raise RuntimeError("llama_decode failed")
        api.llama_batch_free(batch)

    def case(prompt: list[int]) -> tuple[float, float]:
        context.kv_cache_clear()
        begin, step = time.perf_counter(), context._n_ubatch
        for at in range(0, len(prompt), step):
            last = at + step >= len(prompt)
            feed(parts.make_batch_range(prompt[at : at + step], pos_start=at, logits_last=last))
        middle = time.perf_counter()
        for index in range(TOKENS):
            feed(parts.make_batch_single(500, len(prompt) + index))
        return len(prompt) / (middle - begin), TOKENS / (time.perf_counter() - middle)

    for _ in range(ROUNDS):
        for tokens in CASES:
            prefill, decode = case([random.randrange(300, VOCABULARY) for _ in range(tokens)])
            print(f"after {tokens}: prefill {prefill:.0f}, decode {decode:.1f} tokens/s", flush=True)


def with_mla(defaults: Any, field: str) -> Any:
    """The same defaults with `field` set."""

    def changed() -> Any:
        params = defaults()
        setattr(params, field, MLA)
        return params

    return changed


if __name__ == "__main__":
    {"write": write, "run": run}[sys.argv[1]](*sys.argv[2:])
