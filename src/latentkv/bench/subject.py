"""What is measured: a model loaded by name or the random one, with its peers; and the facts that belong to a number."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from latentkv.backends.ceilings import Ceilings
from latentkv.backends.isa import active_isa, find_isa, native_missing
from latentkv.bench.peers import TransformersPeer, transformers_version
from latentkv.bench.random_model import CONFIG, RandomSource
from latentkv.errors import OptionError
from latentkv.models.config import ModelConfig
from latentkv.models.load import DTYPES, Activations, kernels_for, load_model, open_checkpoint, resolve_dtype
from latentkv.models.model import Model
from latentkv.models.step import Execution
from latentkv.models.weights import WeightSource

DEFAULT_MODEL = "default"
CEILING_SAMPLES = 5


@dataclass(frozen=True)
class Subject:
    """A model to measure, and the checkpoint it comes from."""

    name: str
    model: Model
    config: Mapping[str, Any]
    source: WeightSource

    @property
    def longest(self) -> int:
        """Most tokens of a context."""
        return self.model.max_position_embeddings

    @property
    def facts(self) -> dict[str, Any]:
        """What the numbers are about."""
        return {
            "model": self.name,
            "parameters": self.model.num_parameters,
            "weight_bytes": self.model.weight_bytes,
            "computed_in": str(self.model.dtype).removeprefix("torch."),
        }

    def peers(self, dtypes: Sequence[str]) -> list[TransformersPeer]:
        """transformers on the same weights, once for each dtype."""
        transformers_version()
        return [TransformersPeer(self.config, self.source, DTYPES[name]) for name in dtypes]


def open_subject(
    name: str | None,
    *,
    dtype: str = "auto",
    weights: Literal["stored", "dtype"] = "stored",
    activations: Activations = "float",
    attention: Literal["mla", "gqa"] = "mla",
) -> Subject:
    """Load what `name` says: a folder, `.gguf` file or hub id, "default", or None for the random model.

    The other options are those of `load_model`, which says what it raises.
    """
    if name is None:
        kernels = kernels_for(activations)
        source = RandomSource()
        model = Model.read(
            source,
            ModelConfig.from_dict(CONFIG),
            dtype=resolve_dtype(dtype, source),
            keep_stored=weights == "stored",
            execution=Execution(kernels),
        )
        return Subject("random dense DeepSeek-V2", model, CONFIG, source)
    wanted = None if name == DEFAULT_MODEL else name
    loaded = load_model(wanted, dtype=dtype, weights=weights, activations=activations, attention=attention)
    checkpoint = open_checkpoint(wanted)
    return Subject(str(loaded.files.path), loaded.model, checkpoint.config, checkpoint.source)


def environment() -> dict[str, Any]:
    """Versions, threads and instruction set, and what the machine multiplies and reads at best."""
    try:
        theirs: str | None = transformers_version()
    except OptionError:
        theirs = None
    ceilings: dict[str, float] = {}
    if not native_missing():
        best = Ceilings(find_isa(), torch.get_num_threads())
        for _ in range(CEILING_SAMPLES):
            best.sample()
        ceilings = {"fma_gflops": round(best.gflops, 1), "read_gbs": round(best.read_gbs, 2)}
    return {
        "isa": active_isa(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "transformers": theirs,
        **ceilings,
    }
