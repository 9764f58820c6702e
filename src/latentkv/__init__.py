"""latentkv: Multi-head Latent Attention models, run from their compressed KV cache."""

__version__ = "0.1.0"
