"""Quantities with units: reading `8ms`, `1%`, `25 MiB`; writing numbers with no more digits than noise allows."""

from __future__ import annotations

import math
import re

from portolan.errors import UsageError

_SCALES: dict[str, dict[str, float]] = {
    "time": {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0, "h": 3600.0},
    "bytes": {
        "B": 1, "kB": 1e3, "KB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12,
        "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40,
    },
    "rate": {"/s": 1.0, "1/s": 1.0, "qps": 1.0, "ips": 1.0},
    "share": {"%": 0.01, "pp": 0.01, "points": 0.01, "point": 0.01},
    "energy": {"J": 1.0, "mJ": 1e-3, "Wh": 3600.0},
    "money": {"USD": 1.0, "$": 1.0},
    "carbon": {"g": 1.0, "gCO2e": 1.0, "kg": 1000.0},
}  # fmt: skip
_NUMBER = re.compile(r"\s*([-+]?(?:\d+(?:_\d+)*\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*(\S*)\s*$")


def parse(text: str, dimension: str) -> float:
    """Reads a number with an optional unit of `dimension`, in the dimension's base unit (seconds, bytes, 1, ...).

    Args:
        text: for example `"8 ms"`, `"1%"`, `"300s"`.
        dimension: one of time, bytes, rate, share, energy, money, carbon.

    Raises:
        UsageError: not a number, or a unit of another dimension.
    """
    match = _NUMBER.match(text)
    if match is None or not math.isfinite(value := float(match[1])):
        raise UsageError(f"`{text}` is not a number with a unit", hint=f"write for example `{_example(dimension)}`")
    unit = match[2]
    scales = _SCALES[dimension]
    if not unit and dimension in ("rate", "share"):
        return value
    if unit not in scales:
        known = ", ".join(scales)
        raise UsageError(f"`{unit or 'no unit'}` is not a unit of {dimension} in `{text}`", hint=f"use one of {known}")
    return value * scales[unit]


def _example(dimension: str) -> str:
    return {"time": "8ms", "bytes": "25MiB", "rate": "100/s", "share": "1%"}.get(dimension, "1")


def scale_of(value: float, unit: str) -> tuple[float, str]:
    """The factor and unit that people read a number of this size in: KiB or MiB, percent, µs for small times."""
    if unit == "B":
        name = next((n for n in ("GiB", "MiB", "KiB") if abs(value) >= _SCALES["bytes"][n]), "B")
        return 1 / _SCALES["bytes"][name], name
    if unit == "share":
        return 100.0, "%"
    if unit == "ms" and 0 < abs(value) < 0.1:
        return 1000.0, "µs"
    if unit == "ms" and abs(value) >= 10_000:
        return 1e-3, "s"
    return 1.0, unit


def scale(value: float, unit: str) -> tuple[float, str]:
    """`value` in `unit` as people read it, with the unit that `scale_of` chooses."""
    factor, shown = scale_of(value, unit)
    return value * factor, shown


def digits(value: float, noise: float | None) -> str:
    """`value` rounded so that its last digit is about the size of `noise`; three significant digits without one."""
    if not math.isfinite(value):
        return str(value)
    if noise is None or noise <= 0 or not math.isfinite(noise):
        places = 2 if value == 0 else 2 - math.floor(math.log10(abs(value)))
    else:
        places = -math.floor(math.log10(noise))
    places = max(0, min(places, 6))
    if value and abs(value) < 10.0**-6:
        return f"{value:.1e}"
    return f"{value:,.{places}f}"
