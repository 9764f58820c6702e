"""Every error that latentkv raises on purpose, and the sentence it is told in.

    LatentKVError
    ├── OptionError           an option is unknown or outside its range
    ├── ConfigError           a model's configuration lacks a field or contradicts itself
    ├── UnsupportedModelError the model is understood, and cannot be run: the reason is given
    ├── CheckpointError       a weights file is damaged, or its tensors are not the model's
    ├── TokenizerError        a tokenizer or chat template is missing or unusable
    ├── ShapeError            an array argument has the wrong shape, dtype or device
    ├── MemoryShortError      a model's weights need more memory than there is
    ├── UnsupportedError      no backend can run this call, or the named one cannot
    ├── StalePlanError        a plan is used for lengths it was not made for
    └── CapacityError         more tokens or pages are asked for than exist
        └── OutOfPagesError   the page pool is empty for now (the scheduler preempts; users never see it)

A message says what is wrong, what was expected, what was found and what helps. The command line prints it and exits
with code 2. Programming errors inside latentkv stay ordinary Python exceptions with a traceback.
"""

from __future__ import annotations


class LatentKVError(Exception):
    """Base of all errors raised on purpose."""


class OptionError(LatentKVError, ValueError):
    """An option or environment variable is unknown or outside its range."""


class ConfigError(LatentKVError, ValueError):
    """A model's configuration lacks a field or contradicts itself."""


class UnsupportedModelError(LatentKVError):
    """The model is recognised and refused; the message gives the reason."""


class CheckpointError(LatentKVError):
    """A weights file is damaged, or its tensors are not those of the model."""


class TokenizerError(LatentKVError):
    """A tokenizer or chat template is missing or unusable."""


class ShapeError(LatentKVError, ValueError):
    """An array argument has the wrong shape, dtype, device or strides."""


class MemoryShortError(LatentKVError):
    """Loading would take more memory than there is; the message says how much and what takes less."""


class UnsupportedError(LatentKVError):
    """No backend can run the call, or the one that was named cannot."""


class StalePlanError(LatentKVError):
    """A plan is used for lengths other than those it was made for."""


class CapacityError(LatentKVError):
    """More tokens or pages are asked for than can ever exist."""


class OutOfPagesError(CapacityError):
    """The page pool has too few free pages at this moment."""


def sentence(what: str, *, expected: object, got: object, remedy: str = "") -> str:
    """One clear sentence: `what: expected …, got …. remedy`."""
    tail = f" {remedy}" if remedy else ""
    return f"{what}: expected {expected}, got {got}.{tail}"
