"""Writes the random DeepSeek-V2-style model of the benchmarks as a checkpoint that any server can load.

    python benchmarks/random_checkpoint.py FOLDER

Weights in bfloat16, and a tokenizer with one word per token: text is of no use here, but servers want to return some.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from safetensors.torch import save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit

from latentkv.bench.random_model import CONFIG, RandomSource, shapes_of

# What transformers' configuration of DeepSeek-V2 wants besides; no layer has the experts (`first_k_dense_replace`).
MORE = {
    "architectures": ["DeepseekV2ForCausalLM"],
    "torch_dtype": "bfloat16",
    "hidden_act": "silu",
    "attention_bias": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "n_routed_experts": 8,
    "n_shared_experts": 1,
    "moe_intermediate_size": 1408,
    "num_experts_per_tok": 2,
    "rope_theta": 10000.0,
}


def main() -> None:
    """Write configuration, weights and tokenizer."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder: Path = parser.parse_args().folder
    folder.mkdir(parents=True)
    source = RandomSource()
    save_file({name: source.get(name, dtype=None) for name in shapes_of(CONFIG)}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({**CONFIG, **MORE}, indent=2))
    words = {f"w{index}": index for index in range(CONFIG["vocab_size"])}
    tokenizer = Tokenizer(WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "w0", "bos_token": "w1", "eos_token": "w2"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    print(folder)


if __name__ == "__main__":
    main()
