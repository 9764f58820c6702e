"""The public names: a sorted list, each reachable, none more."""

from __future__ import annotations

import importlib

import pytest

import latentkv


def test_all_is_sorted_without_repeats() -> None:
    names = [name for name in latentkv.__all__ if name != "__version__"]
    assert len(set(names)) == len(names)
    # The order ruff keeps: constants, then classes, then functions.
    assert names == sorted(names, key=lambda name: (not name.isupper(), not name[0].isupper(), name))


@pytest.mark.parametrize("name", latentkv.__all__)
def test_public_name_is_the_one_in_its_module(name: str) -> None:
    value = getattr(latentkv, name)
    if name == "__version__":
        assert value.count(".") == 2
        return
    assert value is getattr(importlib.import_module(value.__module__), name)
    assert value.__module__.startswith("latentkv.")
    assert name in dir(latentkv)


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match=r"latentkv.*'attention_is_all'"):
        _ = latentkv.attention_is_all
