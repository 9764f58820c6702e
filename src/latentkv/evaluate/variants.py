"""Cache formats that exist to be measured: what the public formats would be, had another choice been made.

They run wherever a format is taken as an object, and no command but `latentkv eval` offers them.
"""

from __future__ import annotations

from dataclasses import replace

from latentkv.cache.layout import FORMATS, Coding, Format
from latentkv.errors import OptionError, sentence

_FP8, _INT8, _INT6, _INT4 = (FORMATS[name] for name in ("fp8", "int8", "int6", "int4"))

_CHOICES = (
    replace(_FP8, name="fp8-rotated", rotated=True),
    replace(_INT8, name="int8-unrotated", rotated=False),
    replace(_INT6, name="int6-unrotated", rotated=False),
    replace(_INT4, name="int4-unrotated", rotated=False),
    replace(_INT8, name="int8-rope8", rope=Coding("int8", 64, "bfloat16")),
    replace(_INT6, name="int6-rope6", rope=Coding("int6", 64, "bfloat16")),
    replace(_INT4, name="int4-rope4", rope=Coding("int4", 64, "bfloat16")),
    replace(_INT4, name="int4-groups32", latent=Coding("int4", 32, "bfloat16")),
    replace(_INT4, name="int4-groups128", latent=Coding("int4", 128, "bfloat16")),
)
VARIANTS = {format.name: format for format in _CHOICES}


def measured_format(name: str) -> Format:
    """The public format or variant called `name`. Raises OptionError for an unknown one."""
    known = FORMATS | VARIANTS
    if name not in known:
        raise OptionError(sentence("cache format", expected=f"one of {', '.join(known)}", got=repr(name)))
    return known[name]
