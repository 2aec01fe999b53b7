"""Columns of text, and numbers in cells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from portolan import units
from portolan.cli.console import Line
from portolan.core.measurement import METRICS, Measurement

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
    for factor, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= factor:
            return f"{units.digits(value / factor, None)} {prefix}{unit}".strip()
    return f"{value:,.0f} {unit}".strip()


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
    """Headings and cells of some metrics over some rows; milliseconds go into the heading if all cells have them."""
    heads: list[str] = []
    cells: list[list[str]] = [[] for _ in rows]
    for name in metrics:
        texts = [number(row.get(name)) for row in rows]
        # A rate's unit is always its heading; milliseconds are only where no cell needs another scale.
        unit = " 1/s" if METRICS[name].unit == "1/s" else " ms"
        shared = all(unit in text for text in texts if text != "-") and any(text != "-" for text in texts)
        label = LABELS.get(name, name.replace("_", " "))
        heads.append(f"{label} ms" if shared and unit == " ms" else label)
        for cell, text in zip(cells, texts, strict=True):
            cell.append(text.replace(unit, "") if shared else text)
    return heads, cells


def plain(texts: Sequence[str], style: str = "") -> list[Line]:
    """Lines of one style."""
    return [Line(text, style) for text in texts]
