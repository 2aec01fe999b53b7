"""Columns of text, and numbers in cells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from portolan import units
from portolan.cli.console import Line
from portolan.core.measurement import METRICS, Measurement, load_of, unloaded

LABELS: Mapping[str, str] = {
    "latency_p50": "p50",
    "latency_p95": "p95",
    "latency_p99": "p99",
    "throughput": "per second",
    "cold_start": "cold start",
    "compile_time": "compile",
    "accuracy_drop": "drop",
    "max_abs_error": "abs error",
    "max_rel_error": "rel error",
}


def measurement(metric: Mapping[str, Any] | None) -> Measurement | None:
    """A metric object of the contract as a Measurement; None where it is missing or no number."""
    if metric is None or metric.get("value") is None:
        return None
    keys = ("value", "unit", "lo", "hi", "n", "kind")
    return Measurement(**{key: metric[key] for key in keys if key in metric})


def number(metric: Mapping[str, Any] | None, *, n: bool = False) -> str:
    """A metric with its unit and interval, and with `n` the number of readings; `-` where it is missing."""
    found = measurement(metric)
    if found is None:
        return "-"
    return str(found) if n else found.short


def quantity(value: float | None, unit: str) -> str:
    """A plain count with a prefix: `25.6 M`, `8.21 GFLOP`; `unknown` for None."""
    if value is None:
        return f"unknown {'bytes' if unit == 'B' else f'{unit}s'}"
    if unit == "B":
        return units.write(value, "B")
    return units.count(value, unit)


def columns(rows: Sequence[Sequence[str]], *, right: frozenset[int] = frozenset(), gap: str = "  ") -> list[str]:
    """Rows of cells as lines of equal columns; the columns in `right` are set to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))] if rows else []
    return [
        gap.join(
            c.rjust(w) if i in right else c.ljust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def metric_columns(metrics: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Headings and cells of some metrics over some rows; times of a column share one unit, which the heading names."""
    heads: list[str] = []
    cells: list[list[str]] = [[] for _ in rows]
    for name in metrics:
        found = [measurement(row.get(name)) for row in rows]
        unit = METRICS[unloaded(name)].unit
        shown, factor = _time_unit(found) if unit == "ms" else (None, 1.0)
        label = _heading(name)
        heads.append(f"{label} {shown}" if shown else label)
        for cell, one in zip(cells, found, strict=True):
            text = "-" if one is None else _bare(one, factor) if shown else number(asdict(one) | {"n": None})
            # A rate's unit is its heading.
            cell.append(text.replace(" 1/s", ""))
    return heads, cells


def _heading(name: str) -> str:
    """`p95`, or `p95 at 200 qps`."""
    metric, rate = unloaded(name), load_of(name)
    label = LABELS.get(metric, metric.replace("_", " "))
    return label if rate is None else f"{label} at {rate:.10g} qps"


def _time_unit(column: Sequence[Measurement | None]) -> tuple[str | None, float]:
    """The unit of a column of times in ms, and its factor: that of the smallest unless the largest is far from it."""
    values = [abs(m.value) for m in column if m is not None]
    if not values:
        return None, 1.0
    return ("µs", 1e3) if min(values) < 0.1 and max(values) < 10 else ("ms", 1.0)


def _bare(metric: Measurement, factor: float) -> str:
    """The value and its interval, times `factor`, without a unit."""
    lo, hi = (None if end is None else end * factor for end in (metric.lo, metric.hi))
    # A unit that nobody knows is never scaled.
    scaled = Measurement(metric.value * factor, "column", lo, hi, kind=metric.kind)
    return scaled.short.replace(" column", "")


def plain(texts: Sequence[str], style: str = "") -> list[Line]:
    """Lines of one style."""
    return [Line(text, style) for text in texts]
