"""A small random GQA model with a byte-level tokenizer and a chat template: all that a command or a server needs."""

from __future__ import annotations

import json
from pathlib import Path

import tokenizers

from support.tiny_models import Family, save_model

TEMPLATE = (
    "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
_FIELDS = {
    "vocab_size": 300,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 128,
    "pad_token_id": None,
}


def save_chat_model(folder: Path, *, context: int = 128, endless: bool = False) -> Path:
    """Write it into `folder`, which is made; the folder again. `endless`: no token ends its answers."""
    fields = _FIELDS | {"max_position_embeddings": context} | ({"eos_token_id": None} if endless else {})
    save_model(Family("llama with a byte tokenizer", "Llama", fields), folder)
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    backend = tokenizers.Tokenizer(tokenizers.models.BPE({byte: i for i, byte in enumerate(alphabet)}, []))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    backend.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": TEMPLATE}))
    return folder
