"""A model as the planner sees it: what each layer caches, how many parameters it has, and where this is known from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from latentkv.errors import ConfigError, UnsupportedModelError
from latentkv.geometry import Geometry
from latentkv.geometry_fields import Fields, language_model_fields, optional_size
from latentkv.planner.layers import CachedLayers, cached_layers


@dataclass(frozen=True)
class Model:
    """A model that can be planned for.

    layers:        groups of layers that cache alike (one group unless it is a hybrid)
    params_total:  of the language model, None when unknown; params_active: what one token uses, None when unknown
    fields:        its configuration, read only, without nulls (of a multimodal model the language model's)
    weights_bytes: of its weight files as they are stored, where they are on this machine
    source:        where the configuration is from
    notes:         what a reader should know about these facts
    """

    name: str
    layers: tuple[CachedLayers, ...]
    fields: Fields
    source: str
    params_total: int | None = None
    params_active: int | None = None
    weights_bytes: int | None = None
    notes: str = ""

    @property
    def geometry(self) -> Geometry:
        """The attention of its first group of layers with rows, counted over all layers with rows."""
        grouped = [group for group in self.layers if group.geometry is not None]
        if not grouped or grouped[0].geometry is None:
            raise ConfigError(f"{self.name}: no layer keeps a row per token, so there is no attention to describe.")
        return replace(grouped[0].geometry, num_hidden_layers=sum(group.count for group in grouped))

    @property
    def uniform(self) -> bool:
        """Whether every layer caches the same row for every token: the models that latentkv itself can cache."""
        first = self.layers[0]
        plain = first.geometry is not None and first.window_tokens is None and not first.index_elements
        return plain and len(self.layers) == 1

    @property
    def hidden_size(self) -> int | None:
        """Width of the residual stream; None where the configuration does not say."""
        return optional_size(self.fields, "hidden_size")

    @property
    def max_context_tokens(self) -> int | None:
        """The longest context that the configuration names."""
        return optional_size(self.fields, "max_position_embeddings")


def model_from_config(
    name: str,
    config: Mapping[str, object],
    *,
    source: str,
    params_total: int | None = None,
    params_active: int | None = None,
    weights_bytes: int | None = None,
    notes: str = "",
) -> Model:
    """The model that a Hugging Face `config.json` describes.

    Raises ConfigError for a missing or contradictory field; UnsupportedModelError, with the reason, for layers that
    cannot be counted. Both name the model.
    """
    try:
        layers = cached_layers(config)
    except (ConfigError, UnsupportedModelError) as error:
        raise type(error)(f"{name}: {error}") from error
    return Model(
        name=name,
        layers=layers,
        fields=MappingProxyType(language_model_fields(config)),
        source=source,
        params_total=params_total,
        params_active=params_active,
        weights_bytes=weights_bytes,
        notes=notes,
    )
