"""Reads the configuration of the model that MODEL names, and says where its weights lie. Never reads a weight."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from latentkv.errors import ConfigError, sentence
from latentkv.models.config_file import read_config
from latentkv.models.locate import find_model


@dataclass(frozen=True, slots=True)
class NamedConfig:
    """A model's name as given, its configuration, and its weights when they are on this machine."""

    name: str
    config: dict[str, object]
    weights: Path | None


def find_config(model: str | None) -> NamedConfig:
    """The configuration of a folder, a config.json, a .gguf file, a hub id, or None for the default model.

    Of a hub model only the configuration is fetched. Raises CheckpointError when nothing of that name can be found,
    ConfigError or UnsupportedModelError when its configuration cannot be read.
    """
    if model is not None and model.endswith(".json"):
        path = Path(model).expanduser()
        if not path.is_file():
            raise ConfigError(sentence(f"model {model}", expected="a config.json", got="no such file"))
        return NamedConfig(model, read_config(path), None)
    files = find_model(model, config_only=True)
    if files.kind == "gguf":
        return NamedConfig(files.description, _gguf_config(files.path), files.path)
    return NamedConfig(model or files.description, read_config(files.path / "config.json"), files.path)


def _gguf_config(path: Path) -> dict[str, object]:
    from latentkv.models.gguf_config import config_from_gguf
    from latentkv.models.weights.gguf_file import GGUFFile

    return config_from_gguf(GGUFFile(path))
