"""The paged latent cache and the attention call alone, without any model: one prompt, then one decoded token."""

import torch

from latentkv import Batch, CacheLayout, LatentCache
from latentkv.attend import attend
from latentkv.cache.layout import mla_row
from latentkv.ops.absorb import UpProjection

heads, latent, rope, nope, value = 16, 512, 64, 128, 128  # DeepSeek-V2-Lite
layout = CacheLayout(mla_row("bf16", kv_lora_rank=latent, qk_rope_head_dim=rope), num_hidden_layers=1)
cache = LatentCache(layout, num_pages=4)
layer = cache.layer(0)
weight = torch.randn(heads * (nope + value), latent) / latent**0.5
up = UpProjection.from_kv_b_proj(weight, num_heads=heads, qk_nope_head_dim=nope)

for new_tokens, context in ((100, 100), (1, 101)):  # a prompt of 100 tokens, then one more; pages 2 and 0 hold them
    batch = Batch.build(query_lens=[new_tokens], context_lens=[context], pages=[[2, 0]], page_tokens=layout.page_tokens)
    layer.write(batch.slots, {"latent": torch.randn(new_tokens, latent), "rope": torch.randn(new_tokens, rope)})
    query = torch.randn(new_tokens, heads, nope + rope)
    attended = attend(query, layer, batch, scale=(nope + rope) ** -0.5, up=up)
    print(attended.path, list(attended.out.shape), f"lse of the last token {attended.lse[-1].mean():.3f}")
print(f"{cache.size_bytes:,} bytes for {cache.num_pages * layout.page_tokens} tokens of one layer")
