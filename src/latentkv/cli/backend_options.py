"""The options about attention backends, and the guard that they describe. Imports nothing heavy before it is made."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from latentkv.backends.breaker import BreakerPolicy

if TYPE_CHECKING:
    from latentkv.backends.guard import Guard

DEFAULT_POLICY = BreakerPolicy()
PLUGIN = click.option(
    "--backend-plugin",
    "backend_plugins",
    multiple=True,
    metavar="MODULE:FACTORY",
    help="Import a backend of your own, preferred to those built in; may be repeated.",
)
BACKEND = (
    click.option(
        "--backend",
        default="auto",
        show_default=True,
        metavar="NAME",
        help="Attention backend asked first: auto, native, native:ISA, portable or a plug-in's; `latentkv backends` "
        "tells which can run. One that fails is replaced by the others.",
    ),
    PLUGIN,
    click.option(
        "--shadow",
        metavar="BACKEND:SHARE",
        help="Compute this share of the steps on a second backend too, and compare: portable:0.01.",
    ),
    click.option(
        "--dump-dir",
        type=click.Path(file_okay=False),
        help="Where the shadow writes disagreements for `latentkv replay`; the files hold what users wrote.",
    ),
)
BREAKER = (
    click.option(
        "--backend-failures",
        type=click.IntRange(min=1),
        default=DEFAULT_POLICY.failures,
        show_default=True,
        help="Failed steps within a minute after which a backend is left alone for --backend-cooldown.",
    ),
    click.option(
        "--backend-cooldown",
        type=click.FloatRange(min=0),
        metavar="SECONDS",
        default=DEFAULT_POLICY.cooldown_s,
        show_default=True,
        help="Then one step is tried again.",
    ),
)


def wanted_guard(options: Mapping[str, Any]) -> Guard | None:
    """The guard that the options BACKEND ask for; None where all are left out. Raises what `make_guard` does."""
    asked = options["backend"] != "auto" or any(options[name] for name in ("backend_plugins", "shadow", "dump_dir"))
    return make_guard(options) if asked else None


def make_guard(options: Mapping[str, Any]) -> Guard:
    """The guard that the options BACKEND ask for, and BREAKER for a command that has them.

    Raises OptionError for an unknown backend, a plug-in that cannot be imported, a share outside its range, or a
    --dump-dir without --shadow; UnsupportedError for an instruction set that cannot run here.
    """
    from latentkv.backends.dumps import DumpFolder
    from latentkv.backends.guard import Guard
    from latentkv.backends.registry import find_backend, load_plugin
    from latentkv.backends.shadow import Shadow, parse_share
    from latentkv.errors import OptionError, sentence

    plugins = [load_plugin(spec) for spec in options["backend_plugins"]]
    shadow = None
    if options["shadow"] is not None:
        name, share = parse_share(options["shadow"])
        dumps = DumpFolder(options["dump_dir"]) if options["dump_dir"] is not None else None
        shadow = Shadow(find_backend(name, plugins=plugins), name=name, share=share, dumps=dumps)
    elif options["dump_dir"] is not None:
        raise OptionError(sentence("--dump-dir", expected="--shadow with it", got="--dump-dir alone"))
    policy = DEFAULT_POLICY
    if "backend_failures" in options:
        policy = BreakerPolicy(failures=options["backend_failures"], cooldown_s=options["backend_cooldown"])
    return Guard(plugins=plugins, preferred=options["backend"], policy=policy, shadow=shadow)
