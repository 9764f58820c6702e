"""The built-in catalogue of models, and what the user has added to it. Reads files of its own only, never the network.

`data/models.json` is a list of facts: a model's configuration as published, where it was read, and the numbers that a
test recomputes from it. Additions lie in `catalog.json` in the user's folder (LATENTKV_HOME) in the same form.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from latentkv import env
from latentkv.errors import CheckpointError, ConfigError, sentence
from latentkv.planner.model import Model, model_from_config

CATALOG_FILE = Path(__file__).parent / "data" / "models.json"
ADDITIONS_NAME = "catalog.json"
NEAREST = 3


def model_names() -> tuple[str, ...]:
    """Names of all models of the catalogue, the user's own last."""
    return tuple(_records())


def find_model(name: str) -> Model:
    """The model called `name` (owner/name; case does not matter, and the owner may be left out where one fits).

    Raises CheckpointError with the nearest names when there is none; ConfigError or UnsupportedModelError, with the
    reason, when its layers cannot be counted.
    """
    record = find_record(name)
    return model_from_config(
        str(record["name"]),
        record["config"],
        source=str(record["source"]),
        params_total=record.get("params_total") or record.get("params_total_reported"),
        params_active=record.get("params_active") or record.get("params_active_reported"),
        notes=str(record.get("notes") or ""),
    )


def find_record(name: str) -> Mapping[str, Any]:
    """The facts about the model called `name`, as stored. Raises CheckpointError like `find_model`."""
    known = known_name(name)
    if known is None:
        raise CheckpointError(
            sentence(f"model {name}", expected="a model of the catalogue", got="no such name", remedy=nearest(name))
        )
    return _records()[known]


def known_name(name: str) -> str | None:
    """The catalogue's spelling of `name`; None when it has none, or several owners have a model of that name."""
    records, lower = _records(), name.lower()
    if name in records:
        return name
    same = [known for known in records if lower in (known.lower(), known.lower().rpartition("/")[2])]
    return same[0] if len(same) == 1 else None


def nearest(name: str) -> str:
    """A sentence with the nearest names of the catalogue."""
    from difflib import get_close_matches

    names = {known.lower(): known for known in _records()}
    tails = {known.rpartition("/")[2]: full for known, full in names.items()}
    wanted = name.lower()
    found = get_close_matches(wanted, names, NEAREST, 0.5) + get_close_matches(
        wanted.rpartition("/")[2], tails, NEAREST, 0.5
    )
    spelled = list(dict.fromkeys((names | tails)[match] for match in found))[:NEAREST]
    return f"Nearest: {', '.join(spelled)}." if spelled else "`latentkv catalog list` shows all names."


def add_model(
    name: str, config: Mapping[str, object], *, source: str, params_total: int | None, params_active: int | None
) -> Path:
    """Add a model to the user's catalogue, or replace the one of that name; the file that now holds it.

    Raises ConfigError when the built-in catalogue has that name, or when the configuration cannot be planned for.
    """
    if any(name.lower() == built_in.lower() for built_in in _read(CATALOG_FILE)):
        raise ConfigError(
            sentence(f"model {name}", expected="a new name", got="one of the built-in catalogue", remedy="Give --name.")
        )
    model_from_config(name, config, source=source)
    file = env.home() / ADDITIONS_NAME
    added = _read(file) if file.is_file() else {}
    added[name] = {
        "name": name,
        "config": dict(config),
        "params_total": params_total,
        "params_active": params_active,
        "source": source,
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(".partial")
    partial.write_text(json.dumps(list(added.values()), indent=1, ensure_ascii=False) + "\n", "utf-8")
    partial.replace(file)
    _records_with.cache_clear()
    return file


def additions() -> frozenset[str]:
    """Names that the user added."""
    file = env.home() / ADDITIONS_NAME
    return frozenset(_read(file)) if file.is_file() else frozenset()


def _records() -> dict[str, dict[str, Any]]:
    return _records_with(env.home() / ADDITIONS_NAME)


@cache
def _records_with(additions_file: Path) -> dict[str, dict[str, Any]]:
    return {**_read(CATALOG_FILE), **(_read(additions_file) if additions_file.is_file() else {})}


def _read(file: Path) -> dict[str, dict[str, Any]]:
    remedy = "Remove the file, and add the models again." if file != CATALOG_FILE else "Install latentkv again."
    try:
        records = {record["name"]: record for record in json.loads(file.read_text("utf-8"))}
        if not all(isinstance(record["config"], dict) and record["source"] for record in records.values()):
            raise TypeError("an entry without config or source")
    except (ValueError, KeyError, TypeError) as error:
        expected = "a list of models with name, config and source"
        raise ConfigError(sentence(str(file), expected=expected, got=repr(error), remedy=remedy)) from error
    return records
