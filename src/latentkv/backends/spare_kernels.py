"""Kernels behind which the references stand: an op that raises what nobody expected is computed again in plain PyTorch.

For service, where a step has requests of many users in it. Ops leave their arguments as they are, or overwrite cache
rows that the reference overwrites again; rotating a query may happen in place and has no second chance.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import wraps
from typing import ParamSpec, TypeVar

from latentkv.backends.kernels import Kernels, portable_kernels
from latentkv.errors import LatentKVError

logger = logging.getLogger("latentkv.backends.kernels")

P = ParamSpec("P")
R = TypeVar("R")


def with_spare(kernels: Kernels, spare: Kernels | None = None) -> Kernels:
    """The same kernels; where one raises, `spare` (the references) computes that call.

    Counted in `fallbacks` by op and exception, and logged the first time. Errors of latentkv's own, and IndexError for
    a slot outside the cache, are about the arguments and go on.
    """
    behind = spare or portable_kernels()
    counts = kernels.fallbacks
    return replace(
        kernels,
        rms_norm=_guarded("rms_norm", kernels.rms_norm, behind.rms_norm, counts),
        write_rows=_guarded("write_rows", kernels.write_rows, behind.write_rows, counts),
        write_latent=_guarded("write_latent", kernels.write_latent, behind.write_latent, counts),
        linear_stack=_guarded("linear_stack", kernels.linear_stack, behind.linear_stack, counts),
        linear_gated=_guarded("linear_gated", kernels.linear_gated, behind.linear_gated, counts),
        linear_groups=_guarded("linear_groups", kernels.linear_groups, behind.linear_groups, counts),
        choose=_guarded("choose", kernels.choose, behind.choose, counts),
    )


def _guarded(name: str, first: Callable[P, R], second: Callable[P, R], counts: Counter[str]) -> Callable[P, R]:
    @wraps(first)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return first(*args, **kwargs)
        except (LatentKVError, IndexError):
            raise
        except Exception as error:
            key = f"{name}: {type(error).__name__}"
            counts[key] += 1
            if counts[key] == 1:
                logger.warning("native %s failed (%s); the reference computes such calls, counted", name, error)
            return second(*args, **kwargs)

    return call
