"""Choosing a backend by name or by preference, and being told why others were not chosen."""

from __future__ import annotations

import pytest

from latentkv.backends import registry
from latentkv.backends.base import Request, Support
from latentkv.backends.portable import PortableBackend
from latentkv.errors import OptionError, UnsupportedError

REQUEST = Request(
    kind="mla", num_heads=2, format="f32", page_tokens=4, query_dtype="float32", device="cpu", form="auto"
)


class Unable(PortableBackend):
    """A backend that can run nothing."""

    name = "unable"

    def supports(self, request):
        return Support(ok=False, reason="needs a unicorn")


def test_portable_runs_everything_and_is_last():
    assert registry.BACKENDS[-1].name == "portable"
    assert registry.BACKENDS[-1].supports(REQUEST).ok


def test_auto_takes_the_first_that_can_and_tells_why_the_others_could_not(monkeypatch):
    monkeypatch.setattr(registry, "BACKENDS", (Unable(), PortableBackend()))
    selection = registry.select(REQUEST)
    assert selection.backend.name == "portable"
    assert selection.rejected == (("unable", "needs a unicorn"),)


def test_a_named_backend_that_cannot_run_raises_with_its_reason(monkeypatch):
    monkeypatch.setattr(registry, "BACKENDS", (Unable(), PortableBackend()))
    with pytest.raises(UnsupportedError, match="no backend can run this: unable: needs a unicorn"):
        registry.select(REQUEST, name="unable")


def test_an_unknown_name_is_told_with_the_known_ones():
    with pytest.raises(OptionError, match=r"backend: expected auto or one of .*portable, got 'flash'"):
        registry.select(REQUEST, name="flash")
