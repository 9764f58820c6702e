"""`latentkv doctor`: what a bug report needs, also when torch or the native extension is missing."""

from __future__ import annotations

import json
from collections.abc import Mapping

import click

GIB = 1 << 30


@click.command(short_help="Show versions, CPU, memory: what a bug report needs.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a table.")
def doctor(*, as_json: bool) -> None:
    """Show versions, CPU, instruction sets and memory: what a bug report needs.

    Works without torch and without the native extension, and then says why each cannot be used.
    """
    from latentkv.cli import machine

    facts: dict[str, Mapping[str, object]] = {
        "installation": machine.installation(),
        "cpu": machine.cpu(),
        "memory": machine.memory_bytes(),
        "native": machine.native_facts(),
        "torch": machine.torch_facts(),
        "packages": machine.versions(),
        "environment": machine.variables(),
    }
    if as_json:
        click.echo(json.dumps(facts, indent=2))
        return
    for section, values in facts.items():
        click.echo(section)
        for name, value in values.items() or {"": "nothing set"}.items():
            click.echo(f"  {_label(name)}{_text(name, value)}")


def _label(name: str) -> str:
    return f"{name.removesuffix('_bytes').replace('_', ' '):16} " if name else ""


def _text(name: str, value: object) -> str:
    if value is None:
        return "not known" if name in ("commit", "total_bytes", "available_bytes") else "not installed"
    if name.endswith("_bytes") and isinstance(value, int):
        return f"{value / GIB:.1f} GiB"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
