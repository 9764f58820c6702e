"""The calls of github.com/deepseek-ai/FlashMLA on CPU tensors: same names, argument order, shapes and return values.

    from latentkv.flash_mla import flash_mla_with_kvcache, get_mla_metadata

The interface is that of its last releases with dense decoding (1.0 before 2026-09-30). Sizes that its GPU kernels fix
(head dimensions, heads, page size) are free here. What cannot be honoured raises an error of latentkv.errors; which
arguments those are is the table in docs/flash_mla.md.
"""

from latentkv.flash_mla.decode import flash_mla_with_kvcache
from latentkv.flash_mla.metadata import FlashMLASchedMeta, get_mla_metadata
from latentkv.flash_mla.prefill import flash_mla_sparse_fwd

__all__ = ["FlashMLASchedMeta", "flash_mla_sparse_fwd", "flash_mla_with_kvcache", "get_mla_metadata"]
