"""latentkv: Multi-head Latent Attention models, run from their compressed KV cache.

Names are imported when they are first used, so that `import latentkv` needs neither torch nor the native extension.
The attention call itself is `latentkv.attend.attend`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from latentkv.cache.batch import Batch
    from latentkv.cache.latent import LatentCache
    from latentkv.cache.layout import CacheLayout, layout_for
    from latentkv.convert.exact import convert_exact
    from latentkv.engine.engine import Engine
    from latentkv.engine.llm import LLM
    from latentkv.engine.output import Completion
    from latentkv.engine.sampling_params import SamplingParams
    from latentkv.errors import LatentKVError
    from latentkv.geometry import AttentionGeometry, MLAGeometry
    from latentkv.models.load import load_model

__version__ = "0.1.0"

_HOMES = {
    "AttentionGeometry": "latentkv.geometry",
    "Batch": "latentkv.cache.batch",
    "CacheLayout": "latentkv.cache.layout",
    "Completion": "latentkv.engine.output",
    "Engine": "latentkv.engine.engine",
    "LLM": "latentkv.engine.llm",
    "LatentCache": "latentkv.cache.latent",
    "LatentKVError": "latentkv.errors",
    "MLAGeometry": "latentkv.geometry",
    "SamplingParams": "latentkv.engine.sampling_params",
    "convert_exact": "latentkv.convert.exact",
    "layout_for": "latentkv.cache.layout",
    "load_model": "latentkv.models.load",
}

__all__ = [
    "LLM",
    "AttentionGeometry",
    "Batch",
    "CacheLayout",
    "Completion",
    "Engine",
    "LatentCache",
    "LatentKVError",
    "MLAGeometry",
    "SamplingParams",
    "__version__",
    "convert_exact",
    "layout_for",
    "load_model",
]


def __getattr__(name: str) -> object:
    """Import a public name from where it lives."""
    if name not in _HOMES:
        raise AttributeError(f"module 'latentkv' has no attribute {name!r}")
    value: object = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
