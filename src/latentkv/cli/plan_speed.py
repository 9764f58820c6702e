"""The part of `latentkv plan` that is about speed: ceilings on devices, and what is predicted for this machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from latentkv.errors import OptionError, UnsupportedError, sentence

if TYPE_CHECKING:
    from latentkv.planner.devices import Device
    from latentkv.planner.model import Model
    from latentkv.planner.roofline import Load

PREDICTED_CONTEXTS = (128, 1024, 4096, 16384, 32768)
SAMPLES = 5
LABELS = {"memory": "memory", "arithmetic": "arithmetic", "unknown": "not known"}
SPEED_OPTIONS = (
    click.option(
        "--device",
        "devices",
        multiple=True,
        metavar="NAME",
        help="Ceilings in tokens/s on this device, such as h200 or 9654; may be given again. `list` names all.",
    ),
    click.option(
        "--queries", type=int, default=1, show_default=True, help="New tokens per sequence and step, for --device."
    ),
    click.option(
        "--this-machine", is_flag=True, help="Measure this machine and predict how fast latentkv decodes on it."
    ),
    click.option(
        "--roofline",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="Draw attention under the roofs of --device: .png or .svg (needs matplotlib).",
    ),
)


def wants_speed(options: Mapping[str, Any]) -> bool:
    """Whether any option of this file was given. Raises OptionError for --roofline without a device."""
    if options["roofline"] is not None and not options["devices"]:
        raise OptionError(sentence("--roofline", expected="--device, whose roof is drawn", got="none"))
    return bool(options["devices"] or options["this_machine"])


def speed_records(models: Sequence[Model], load: Load, options: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Ceilings and predictions of each model as JSON-ready values.

    options: those of SPEED_OPTIONS, `format` of the cache and `weights` (None leaves them out of ceilings)
    Raises OptionError for an unknown device, UnsupportedError for --this-machine without the native extension.
    """
    machine = _this_machine() if options["this_machine"] else None
    records = [_on_device(model, device, load, options) for model in models for device in _devices(options)]
    return records + [_predicted(model, machine, options) for model in models if machine is not None]


def speed_text(models: Sequence[Model], load: Load, options: Mapping[str, Any]) -> str:
    """The same as tables."""
    if "list" in options["devices"]:
        return _device_list()
    records = speed_records(models, load, options)
    return "".join(_predicted_text(each) if "predicted" in each else _device_text(each) for each in records)


def draw(models: Sequence[Model], load: Load, options: Mapping[str, Any]) -> None:
    """Write the roofline of the one model. Raises OptionError for more than one."""
    from latentkv.planner.roofline_plot import draw_roofline

    if len(models) != 1:
        raise OptionError(sentence("--roofline", expected="one model", got=len(models)))
    draw_roofline(models[0], _devices(options), load, options["roofline"], format=options["format"])


def _devices(options: Mapping[str, Any]) -> list[Device]:
    from latentkv.planner.devices import find_device

    return [find_device(name) for name in options["devices"]]


def _on_device(model: Model, device: Device, load: Load, options: Mapping[str, Any]) -> dict[str, Any]:
    from latentkv.planner.roofline import ceilings

    rows = ceilings(model, device, load, format=options["format"], weights=options["weights"])
    return {
        "model": model.name,
        "device": device.name,
        "source": device.source.title,
        "precision": device.default_precision,
        "ridge_flop_per_byte": device.ridge(device.default_precision),
        "batch": load.batch,
        "context_tokens": load.context_tokens,
        "queries": load.queries,
        "format": options["format"],
        "weights": options["weights"],
        "ways": [
            {
                "attention": row.name,
                "attention_flops": row.attention.flops,
                "attention_bytes": row.attention.read_bytes,
                "flop_per_byte": row.attention.intensity,
                "attention_bound": row.attention_bound,
                "weights_bound": row.weights_bound,
                "tokens_per_second": row.tokens_per_second,
            }
            for row in rows
        ],
        "faster_from_queries": _crossings(model, device, options["format"]),
    }


def _crossings(model: Model, device: Device, format: str) -> dict[str, float | None]:
    """From how many new tokens a step on a twin attends faster than MLA; None for never."""
    from latentkv.geometry import MLAGeometry
    from latentkv.planner.layers import attention_name
    from latentkv.planner.roofline import crossing_queries
    from latentkv.planner.twins import twins

    geometry, precision = model.geometry, device.default_precision
    if not isinstance(geometry, MLAGeometry):
        return {}
    found = {
        attention_name(twin): crossing_queries(geometry, twin, device, format=format, precision=precision)
        for twin in twins(geometry)
    }
    return {name: None if queries == inf else queries for name, queries in found.items()}


def _device_text(record: Mapping[str, Any]) -> str:
    from latentkv.cli.text_table import bullets, table
    from latentkv.planner.units import short

    rows = [
        (
            way["attention"],
            short(way["flop_per_byte"]),
            LABELS[way["attention_bound"]],
            LABELS.get(way["weights_bound"] or "", "left out"),
            short(way["tokens_per_second"]),
        )
        for way in record["ways"]
    ]
    ridge = record["ridge_flop_per_byte"]
    title = (
        f"{record['model']} on {record['device']}: {record['batch']:,} x {record['context_tokens']:,} tokens, "
        f"{record['queries']} new each, {record['format']} cache, weights {record['weights'] or 'left out'}\n"
    )
    notes = [f"Ridge: {short(ridge)} FLOP/byte in {record['precision']}. Source: {record['source']}."] if ridge else []
    notes += [_crossing(name, queries) for name, queries in record["faster_from_queries"].items()]
    head = ("attention", "FLOP/byte", "attention bound by", "weights bound by", "at most tokens/s")
    return (
        title + table(head, rows, left=1) + bullets([*notes, "Ceilings: no kernel, launch or link is counted."]) + "\n"
    )


def _crossing(name: str, queries: float | None) -> str:
    if queries is None:
        return f"{name} never attends faster than MLA's latent form here."
    if queries <= 1:
        return f"{name} always attends faster than MLA's latent form here: MLA pays in arithmetic."
    return f"{name} attends faster than MLA's latent form from {int(queries) + 1} new tokens per step on."


def _this_machine() -> Device:
    """Measure both ceilings with the threads that torch would use. Raises UnsupportedError without the extension."""
    from latentkv.backends import isa
    from latentkv.cli.machine import cpu
    from latentkv.planner.prediction import this_machine

    if isa.native_missing():
        raise UnsupportedError(f"--this-machine measures with the native kernels: {isa.native_missing()}")
    from latentkv.backends.ceilings import Ceilings

    facts = cpu()
    ceiling = Ceilings(isa.find_isa(), threads=int(str(facts["usable_cores"])))
    for _ in range(SAMPLES):
        ceiling.sample()
    return this_machine(
        f"{facts['model']}, {facts['usable_cores']} cores", gflops=ceiling.gflops, read_gbs=ceiling.read_gbs
    )


def _predicted(model: Model, machine: Device, options: Mapping[str, Any]) -> dict[str, Any]:
    from latentkv.planner.prediction import DecodeModel, predict_decode
    from latentkv.planner.roofline import Load, weights_work

    size = weights_work(model, Load(), weights=options["weights"] or "bf16").read_bytes
    bits = 8 * size / max(1.0, weights_work(model, Load(), weights="f32").read_bytes / 4)
    decoded = DecodeModel(model.geometry, size, bits)
    longest = model.max_context_tokens or PREDICTED_CONTEXTS[-1]
    contexts = [tokens for tokens in PREDICTED_CONTEXTS if tokens <= longest]
    return {
        "model": model.name,
        "device": machine.name,
        "fp32_gflops": (machine.rate("fp32") or 0) / 1e9,
        "read_gb_per_s": machine.bandwidth_bytes_s / 1e9,
        "format": options["format"],
        "weights": options["weights"] or "bf16",
        "predicted": [
            {
                "context_tokens": tokens,
                "weights_ms": each.weights_seconds * 1e3,
                "attention_ms": each.attention_seconds * 1e3,
                "python_ms": each.python_seconds * 1e3,
                "tokens_per_second": each.tokens_per_second,
            }
            for tokens in contexts
            for each in (predict_decode(decoded, machine, context_tokens=tokens, format=options["format"]),)
        ],
    }


def _predicted_text(record: Mapping[str, Any]) -> str:
    from latentkv.cli.text_table import bullets, table
    from latentkv.planner.units import short

    columns = ("weights_ms", "attention_ms", "python_ms", "tokens_per_second")
    rows = [(f"{each['context_tokens']:,}", *(short(each[name]) for name in columns)) for each in record["predicted"]]
    title = (
        f"{record['model']} on this machine ({record['device']}; measured now: {record['fp32_gflops']:.0f} GFLOP/s in "
        f"fp32, {record['read_gb_per_s']:.1f} GB/s read), one sequence, {record['format']} cache, "
        f"weights {record['weights']}\n"
    )
    head = ("context", "weights, ms", "attention, ms", "Python, ms", "tokens/s")
    notes = [
        "Predicted from both ceilings and the shares that the native kernels reach (planner/data/efficiency.json).",
        "benchmarks/bench_prediction.py compares predictions with measurements.",
    ]
    return title + table(head, rows, left=0) + bullets(notes) + "\n"


def _device_list() -> str:
    from latentkv.cli.text_table import table
    from latentkv.planner.devices import PRECISIONS, device_names, find_device
    from latentkv.planner.units import short

    rows = []
    for name in device_names():
        device = find_device(name)
        memory = f"{device.memory_bytes / 1e9:.0f} GB" if device.memory_bytes else ""
        rates = [device.rate(precision) for precision in PRECISIONS]
        told = [short(rate / 1e12) if rate else "" for rate in rates]
        rows.append((name, memory, f"{device.bandwidth_bytes_s / 1e9:,.0f} GB/s", *told, device.source.kind))
    head = ("device", "memory", "read", *(f"{precision}, T/s" for precision in PRECISIONS), "source")
    return table(head, rows, left=1)
