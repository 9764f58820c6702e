"""From what a user types to a planner's model: the catalogue first, then files on this machine, the hub only if asked.

Needs neither torch nor, for the catalogue, any file but the catalogue's own.
"""

from __future__ import annotations

from pathlib import Path

from latentkv.errors import CheckpointError, ConfigError, UnsupportedModelError, sentence
from latentkv.planner.catalog import find_model, known_name, nearest
from latentkv.planner.model import Model, model_from_config


def resolve_model(text: str, *, hub: bool = False) -> Model:
    """The model of the catalogue, the config.json, the folder or the .gguf file that `text` names.

    With `hub`, the configuration of any other owner/name is fetched. Raises CheckpointError with the nearest names
    when there is nothing of that name; ConfigError or UnsupportedModelError, with the reason, for a model that cannot
    be counted.
    """
    if _is_file(text):
        return _from_files(text)
    if known_name(text) is not None:
        return find_model(text)
    if not hub:
        looks_like_hub = text.count("/") == 1 and not text.startswith((".", "/", "~"))
        remedy = " `--hub` fetches its configuration." if looks_like_hub else ""
        raise CheckpointError(
            sentence(
                f"model {text}",
                expected="a model of the catalogue, a config.json, a folder or a .gguf file",
                got="nothing of that name",
                remedy=nearest(text) + remedy,
            )
        )
    try:
        return _from_files(text)
    except CheckpointError as error:
        raise CheckpointError(f"{error} {nearest(text)}") from error


def _is_file(text: str) -> bool:
    path = Path(text).expanduser()
    return text.endswith((".json", ".gguf")) or text.startswith((".", "/", "~")) or path.exists()


def _from_files(text: str) -> Model:
    from latentkv.cli.model_config import find_config

    named = find_config(text)
    weights = named.weights if named.weights is not None and _has_weights(named.weights) else None
    total, active = _parameters(named.config, weights)
    return model_from_config(
        named.name,
        named.config,
        source=str(named.weights or text),
        params_total=total,
        params_active=active,
        weights_bytes=_stored_bytes(weights) if weights is not None else None,
    )


def _parameters(config: dict[str, object], weights: Path | None) -> tuple[int | None, int | None]:
    """Counted from headers of weight files, or from the configuration of a known family; else None, None."""
    from latentkv.cli.parameters import count_parameters, weights_parameters
    from latentkv.geometry import from_config
    from latentkv.geometry_fields import language_model_fields

    try:
        counted = count_parameters(language_model_fields(config), from_config(config), weights)
    except (ConfigError, UnsupportedModelError):
        return (weights_parameters(weights) if weights is not None else None), None
    return (counted.total, counted.active) if counted is not None else (None, None)


def _has_weights(path: Path) -> bool:
    return path.is_file() or any(path.glob("*.safetensors"))


def _stored_bytes(path: Path) -> int:
    return path.stat().st_size if path.is_file() else sum(file.stat().st_size for file in path.glob("*.safetensors"))
