"""Lets torch detect AVX2 and nothing wider, so that what is chosen by detection runs as on a CPU of that kind.

Put this folder first in PYTHONPATH. vLLM then loads its AVX2 extension and takes neither its AMX kernels nor their
data types. Changes what is detected, no code; libraries that look for themselves are told by their own variables:
ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2 MKL_ENABLE_INSTRUCTIONS=AVX2.
"""

from types import MappingProxyType

import torch.cpu

WIDER = ("avx512", "avx10", "amx", "avx_vnni", "avx_ne")

_narrowed = MappingProxyType(
    {name: False if name.startswith(WIDER) else has for name, has in torch.cpu.get_capabilities().items()}
)
torch.cpu.get_capabilities = lambda: _narrowed
