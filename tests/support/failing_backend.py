"""Backends that fail on purpose, around a real one: for the guard, the shadow, and a server under load.

As plug-ins of a process of their own: `--backend-plugin support.failing_backend:make` reads what to do from the
environment: FAILING_BACKEND=raise|nan|inf|wrong, FAILING_EVERY=steps.
"""

from __future__ import annotations

import os
from dataclasses import replace

import torch

from latentkv.backends.base import Attended, Backend, Plan, Request, Support
from latentkv.backends.registry import BACKENDS

MODES = ("raise", "nan", "inf", "wrong")


class FailingBackend:
    """Computes as `inside` does, but in every `every`th step (plan) its `at_call`th call fails.

    mode: "raise", "nan" or "inf" (in one LSE), or "wrong": an output that is off by a hundredth of its largest
    """

    def __init__(
        self, mode: str, *, every: int, at_call: int = 0, name: str = "failing", inside: Backend | None = None
    ) -> None:
        if mode not in MODES:
            raise ValueError(mode)
        self.name = name
        self.mode = mode
        self.every = every
        self.at_call = at_call
        self.inside = inside or next(b for b in BACKENDS if b.supports(_ANY).ok)
        self.steps = 0
        self.calls = 0
        self.failures = 0

    def supports(self, request: Request) -> Support:
        return self.inside.supports(request)

    def plan(self, request: Request, batch: object) -> Plan:
        self.steps += 1
        self.calls = 0
        return self.inside.plan(request, batch)

    def run(self, plan: Plan, request: Request, query: torch.Tensor, *args: object, **options: object) -> Attended:
        self.calls += 1
        result = self.inside.run(plan, request, query, *args, **options)
        if self.every == 0 or self.steps % self.every or self.calls != self.at_call + 1:
            return result
        self.failures += 1
        return self._spoilt(result)

    def _spoilt(self, result: Attended) -> Attended:
        if self.mode == "raise":
            raise RuntimeError("made to fail")
        if self.mode == "wrong":
            return replace(result, out=result.out + 1e-2 * result.out.abs().max())
        lse = result.lse.clone()
        lse[-1, -1] = float(self.mode)
        return replace(result, lse=lse)


def make() -> FailingBackend:
    return FailingBackend(os.environ.get("FAILING_BACKEND", "raise"), every=int(os.environ.get("FAILING_EVERY", "50")))


_ANY = Request(kind="mla", num_heads=1, format="bf16", page_tokens=16, query_dtype="float32", device="cpu", form="auto")
