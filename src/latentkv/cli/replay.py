"""`latentkv replay`: run a call that two backends disagreed on once more, on any backend and instruction set."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from latentkv.cli.backend_options import PLUGIN
from latentkv.cli.options import with_options

if TYPE_CHECKING:
    from latentkv.backends.agreement import Agreement
    from latentkv.backends.dumps import Dump
    from latentkv.backends.replay import Rerun

EXIT_DISAGREES = 3


@click.command(short_help="Run a dumped disagreement of two backends again.")
@click.argument("file", type=click.Path())
@click.option(
    "--backend",
    "names",
    multiple=True,
    metavar="NAME",
    help="native, native:ISA, portable or a plug-in's; may be repeated.  [default: native and portable]",
)
@with_options((PLUGIN,))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a table.")
def replay(*, file: str, names: tuple[str, ...], backend_plugins: tuple[str, ...], as_json: bool) -> int:
    """Run the call in FILE again and compare with both results that it holds.

    FILE was written by a server with --shadow and --dump-dir. Exit code 0 when every backend agrees with the shadow's
    result in the file, 3 when one does not, 2 when the file cannot be used.
    """
    from latentkv.backends.dumps import read_dump
    from latentkv.backends.registry import known_backends, load_plugin
    from latentkv.backends.replay import rerun

    plugins = [load_plugin(spec) for spec in backend_plugins]
    dump = read_dump(file)
    wanted = names or tuple(one.name for one in known_backends(plugins) if one.supports(dump.call.request).ok)
    runs = [rerun(dump, name, plugins=plugins) for name in wanted]
    if as_json:
        record = {"file": file, "about": dict(dump.about), "runs": [asdict(run) | {"ok": run.ok} for run in runs]}
        click.echo(json.dumps(record, indent=2))
    else:
        click.echo(_text(dump, runs), nl=False)
    return 0 if all(run.ok for run in runs) else EXIT_DISAGREES


def _text(dump: Dump, runs: Sequence[Rerun]) -> str:
    from latentkv.cli.text_table import facts, table

    about, request, lengths = dump.about, dump.call.request, dump.call.batch.lengths
    (used, shadow), found = about["results"], about["agreement"]
    sizes = f"{len(lengths)} sequences, {sum(query for query, _ in lengths)} new tokens, {request.num_heads} heads"
    head = facts(
        [
            ("call", f"{request.kind} over {request.format}, {request.query_dtype} queries; {sizes}"),
            ("written by", f"latentkv {about['latentkv']}, torch {about['torch']}, {about['threads']} threads"),
            ("used", f"{used['name']} ({used['path']})"),
            ("shadow", f"{shadow['name']} ({shadow['path']})"),
            ("apart by", f"output {found['out_error']:.1e} of its largest, LSE {found['lse_error']:.1e}"),
        ]
    )
    headings = ("backend", "what ran", "against the shadow", "output", "LSE", "against what was used", "output", "LSE")
    rows = [(run.backend, run.path or run.problem, *_cells(run.shadow), *_cells(run.used)) for run in runs]
    return head + table(headings, rows, left=3)


def _cells(agreement: Agreement | None) -> tuple[str, str, str]:
    if agreement is None:
        return "-", "-", "-"
    return "agrees" if agreement.ok else "differs", f"{agreement.out_error:.1e}", f"{agreement.lse_error:.1e}"
