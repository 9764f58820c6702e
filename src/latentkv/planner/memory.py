"""What one device must hold, and the reverse: how many users, or which context, a given memory allows.

The reverse answers are searched with the forward sum itself, which never falls as users or context grow; so each is
exactly the largest number whose forward sum still fits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from latentkv.cache.layout import DEFAULT_PAGE_TOKENS
from latentkv.errors import OptionError, sentence
from latentkv.planner.activations import DEFAULT_STEP_TOKENS, step_sizes
from latentkv.planner.model import Model
from latentkv.planner.parallel import Parallel, device_cache_bytes, device_footprint
from latentkv.planner.weights import attention_share, weight_bytes

# More than any memory holds: an answer beyond it means that nothing grows.
UNBOUNDED = 1 << 44


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    """How a model is served.

    format, page_tokens: of the cache
    weights:             a format of weights.py, "stored", "none", or a size such as "14GiB"
    step_tokens:         most new tokens computed in one step
    activation_bytes:    measured need of a step besides weights and cache, instead of the estimate
    reserve_bytes:       kept free on each device (driver, other programs); nothing unless asked
    """

    format: str = "bf16"
    page_tokens: int = DEFAULT_PAGE_TOKENS
    weights: str = "bf16"
    parallel: Parallel = field(default_factory=Parallel)
    step_tokens: int = DEFAULT_STEP_TOKENS
    activation_bytes: int | None = None
    reserve_bytes: int = 0

    def __post_init__(self) -> None:
        if self.step_tokens < 1:
            raise OptionError(sentence("step_tokens", expected="1 or more", got=self.step_tokens))


@dataclass(frozen=True, slots=True)
class MemoryNeed:
    """Bytes on the fullest device."""

    weights: int
    activations: int
    workspace: int
    reserve: int
    cache: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.activations + self.workspace + self.reserve + self.cache


def memory_need(model: Model, deployment: Deployment, *, users: int, context_tokens: int) -> MemoryNeed:
    """Bytes that the fullest device needs for `users` sequences of `context_tokens` each.

    Raises OptionError for a number below 1 or an unknown format, ConfigError when the weights' size is not known.
    """
    for name, number in (("users", users), ("context", context_tokens)):
        if number < 1:
            raise OptionError(sentence(name, expected="1 or more", got=number))
    return _forward(model, deployment)(users, context_tokens)


def most_users(model: Model, deployment: Deployment, *, memory_bytes: int, context_tokens: int) -> int:
    """The most sequences of `context_tokens` each that all devices of `memory_bytes` hold together; 0 when none."""
    forward = _forward(model, deployment)
    return _largest(lambda users: forward(users, context_tokens).total <= memory_bytes)


def most_context(model: Model, deployment: Deployment, *, memory_bytes: int, users: int) -> int | None:
    """The longest context that `users` sequences can have each; 0 when none, None when any context fits."""
    forward = _forward(model, deployment)
    longest = _largest(lambda tokens: forward(users, tokens).total <= memory_bytes)
    return None if longest >= UNBOUNDED else longest


def _forward(model: Model, deployment: Deployment) -> Callable[[int, int], MemoryNeed]:
    """The sum as a function of users and context, with what depends on neither computed once."""
    parallel = deployment.parallel
    weights = device_weight_bytes(model, deployment)
    sizes = step_sizes(model)
    cache = device_footprint(model, parallel, format=deployment.format, page_tokens=deployment.page_tokens)

    def need(users: int, context_tokens: int) -> MemoryNeed:
        step = sizes.need(
            step_tokens=deployment.step_tokens,
            users=-(-users // parallel.data),
            context_tokens=context_tokens,
            tensor=parallel.tensor,
        )
        stated = deployment.activation_bytes
        return MemoryNeed(
            weights=weights,
            activations=step.activation_bytes if stated is None else stated,
            workspace=step.workspace_bytes if stated is None else 0,
            reserve=deployment.reserve_bytes,
            cache=device_cache_bytes(cache, parallel, users=users, context_tokens=context_tokens),
        )

    return need


def device_weight_bytes(model: Model, deployment: Deployment) -> int:
    """Weights on one device: everything over tensor and pipeline ranks, and all but attention over data ranks too.

    Small matrices that tensor parallelism replicates (norms, routers, MLA's down-projections) are counted as split.
    """
    parallel = deployment.parallel
    total = weight_bytes(model, deployment.weights)
    attention = round(total * attention_share(model)) if parallel.data > 1 else 0
    return -(-(attention * parallel.data + total - attention) // parallel.devices)


def _largest(fits: Callable[[int], bool]) -> int:
    """The largest number for which `fits`, which turns false once and for all; at most UNBOUNDED; 0 when none."""
    if not fits(1):
        return 0
    good, bad = 1, 2
    while fits(bad):
        if bad >= UNBOUNDED:
            return UNBOUNDED
        good, bad = bad, bad * 2
    while bad - good > 1:
        middle = (good + bad) // 2
        good, bad = (middle, bad) if fits(middle) else (good, middle)
    return good
