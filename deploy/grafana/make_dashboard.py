"""Writes the Grafana dashboard beside it: `python deploy/grafana/make_dashboard.py`. Standard library only."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_name("latentkv.json")
SOURCE = {"type": "prometheus", "uid": "${source}"}
JOB = '{job=~"$job", instance=~"$instance"}'
WIDTH, HEIGHT, COLUMNS = 8, 7, 3


def rate(metric: str, by: str = "") -> str:
    """Of a counter, per second."""
    return f"sum{f' by ({by})' if by else ''} (rate(latentkv_{metric}{JOB}[$__rate_interval]))"


def total(metric: str, by: str = "") -> str:
    """Of a gauge, over all instances."""
    return f"sum{f' by ({by})' if by else ''} (latentkv_{metric}{JOB})"


def quantiles(metric: str) -> list[tuple[str, str]]:
    """Three quantiles of a histogram."""
    buckets = f"sum by (le) (rate(latentkv_{metric}_bucket{JOB}[$__rate_interval]))"
    return [(f"histogram_quantile({share / 100}, {buckets})", f"p{share}") for share in (50, 90, 99)]


# A row's panels: title, unit, what is told about it, and (expression, legend) pairs.
Panel = tuple[str, str, str, list[tuple[str, str]]]
ROWS: tuple[tuple[str, tuple[Panel, ...]], ...] = (
    (
        "What clients see",
        (
            (
                "Time to first token",
                "s",
                "From arrival, time in the queue included.",
                quantiles("time_to_first_token_seconds"),
            ),
            ("Inter-token latency", "s", "Between two tokens of a request.", quantiles("inter_token_latency_seconds")),
            ("Whole request", "s", "From arrival to the last token.", quantiles("e2e_request_latency_seconds")),
            (
                "Requests",
                "reqps",
                "Choices that ended, by why.",
                [(rate("requests_total", "finish_reason"), "{{finish_reason}}")],
            ),
            (
                "HTTP answers",
                "reqps",
                "By status; 429 means that the queue was full.",
                [(rate("http_requests_total", "status"), "{{status}}")],
            ),
            ("Time in the queue", "s", "From arrival to the first step.", quantiles("request_queue_time_seconds")),
        ),
    ),
    (
        "The engine",
        (
            (
                "Tokens",
                "short",
                "Per second: computed while decoding, computed of prompts, and found in the cache instead.",
                [
                    (rate("generation_tokens_total"), "decoded"),
                    (rate("prompt_tokens_total"), "of prompts"),
                    (rate("prefix_cache_hits_total"), "of prompts, found"),
                ],
            ),
            (
                "Requests in the engine",
                "short",
                "A queue that stays is a server that is too small, or a cache that is.",
                [(total("num_requests_running"), "running"), (total("num_requests_waiting"), "waiting")],
            ),
            ("Steps", "s", "Time of one step: it bounds the inter-token latency.", quantiles("step_seconds")),
            ("Tokens in a step", "short", "The batch.", quantiles("batch_tokens")),
            (
                "Prefix hits",
                "percentunit",
                "Share of the prompt tokens that were in the cache.",
                [(f"{rate('prefix_cache_hits_total')} / {rate('prefix_cache_queries_total')}", "found")],
            ),
            (
                "Preemptions",
                "short",
                "Per second. Requests that gave their pages back: the cache is too small for what runs.",
                [
                    (rate("preemptions_total"), "preemptions"),
                    (rate("recomputed_tokens_total"), "tokens computed again"),
                    (rate("restored_tokens_total"), "tokens found again"),
                ],
            ),
        ),
    ),
    (
        "The cache",
        (
            (
                "Pages",
                "short",
                "By state: held by requests, kept for prefixes, free.",
                [(total("pages", "state"), "{{state}}")],
            ),
            ("Bytes", "bytes", "By tier.", [(total("cache_bytes", "tier"), "{{tier}}")]),
            (
                "Pages between tiers",
                "short",
                "Per second; a page found damaged is computed again.",
                [
                    (rate("swapped_out_pages_total"), "out"),
                    (rate("swapped_in_pages_total"), "in"),
                    (rate("checksum_failures_total"), "damaged"),
                ],
            ),
        ),
    ),
    (
        "Attention backends",
        (
            (
                "Steps by path",
                "ops",
                "Backend, instruction set and form.",
                [(rate("attention_steps_total", "backend, form"), "{{backend}} {{form}}")],
            ),
            (
                "Failures",
                "ops",
                "Steps in which a backend failed; another one finished them.",
                [
                    (rate("backend_failures_total", "backend, reason"), "{{backend}}: {{reason}}"),
                    (rate("attention_not_finite_total"), "no finite result at all"),
                ],
            ),
            (
                "Kernels replaced",
                "ops",
                "Calls of native kernels that portable ones computed instead.",
                [(rate("kernel_fallbacks_total", "op, reason"), "{{op}}: {{reason}}")],
            ),
            (
                "Breakers",
                "short",
                "0 in use, 1 being tried, 2 left alone, 3 switched off.",
                [(f"max by (backend) (latentkv_backend_state{JOB})", "{{backend}}")],
            ),
        ),
    ),
)


def panel(identity: int, place: int, top: int, spec: Panel) -> dict[str, Any]:
    """One time series."""
    title, unit, description, targets = spec
    return {
        "id": identity,
        "type": "timeseries",
        "title": title,
        "description": description,
        "datasource": SOURCE,
        "gridPos": {
            "x": place % COLUMNS * WIDTH,
            "y": top + place // COLUMNS * HEIGHT,
            "w": WIDTH,
            "h": HEIGHT,
        },
        "fieldConfig": {
            "defaults": {"unit": unit, "min": 0, "custom": {"fillOpacity": 8, "lineWidth": 2, "showPoints": "never"}},
            "overrides": [],
        },
        "options": {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi"}},
        "targets": [
            {"refId": chr(ord("A") + index), "expr": expression, "legendFormat": legend, "datasource": SOURCE}
            for index, (expression, legend) in enumerate(targets)
        ],
    }


def dashboard() -> dict[str, Any]:
    """The whole of it, as Grafana imports it."""
    panels: list[dict[str, Any]] = []
    top = 0
    for title, specs in ROWS:
        row = {"x": 0, "y": top, "w": 24, "h": 1}
        panels.append(
            {"id": len(panels) + 1, "type": "row", "title": title, "collapsed": False, "gridPos": row, "panels": []}
        )
        top += 1
        for place, spec in enumerate(specs):
            panels.append(panel(len(panels) + 1, place, top, spec))
        top += -(-len(specs) // COLUMNS) * HEIGHT
    return {
        "uid": "latentkv",
        "title": "latentkv",
        "tags": ["latentkv"],
        "schemaVersion": 39,
        "editable": True,
        "refresh": "10s",
        "time": {"from": "now-30m", "to": "now"},
        "templating": {"list": [variable_of_source(), *map(variable, ("job", "instance"))]},
        "panels": panels,
    }


def variable_of_source() -> dict[str, Any]:
    """Which Prometheus is asked."""
    return {"name": "source", "label": "Prometheus", "type": "datasource", "query": "prometheus", "hide": 0}


def variable(label: str) -> dict[str, Any]:
    """A choice among the values of a label."""
    query = f"label_values(latentkv_model_info, {label})"
    return {
        "name": label,
        "type": "query",
        "datasource": SOURCE,
        "query": {"query": query, "refId": label},
        "definition": query,
        "refresh": 2,
        "includeAll": True,
        "multi": True,
        "current": {"text": "All", "value": "$__all"},
    }


if __name__ == "__main__":
    FILE.write_text(json.dumps(dashboard(), indent=1) + "\n", "utf-8")
