"""Reads a `config.json`. Needs no torch, and knows none of its fields."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from latentkv.errors import ConfigError, sentence


def read_config(path: Path) -> dict[str, Any]:
    """The JSON object in `path`. Raises ConfigError when the file is absent or is not one."""
    if not path.is_file():
        raise ConfigError(sentence(str(path.parent), expected="a folder with a config.json", got="no such file in it"))
    try:
        config = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        remedy = "The file is damaged or incomplete: download it again."
        raise ConfigError(
            sentence(str(path), expected="JSON", got=f"text that is not ({error})", remedy=remedy)
        ) from error
    if not isinstance(config, dict):
        raise ConfigError(sentence(str(path), expected="a JSON object", got=type(config).__name__))
    return config
