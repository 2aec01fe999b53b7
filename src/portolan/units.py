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
_EXAMPLES = {
    "time": "8ms", "bytes": "25MiB", "rate": "100/s", "share": "1%",
    "energy": "5mJ", "money": "0.30USD", "carbon": "2g",
}  # fmt: skip
_MOST_PLACES = 9
_NUMBER = re.compile(r"\s*([-+]?(?:\d+(?:_\d+)*\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*((?:1/)?[^\s\d.,_+-]\S*|)\s*$")


def parse(text: str, dimension: str, into: str | None = None) -> float:
    """Reads a number with an optional unit of `dimension`.

    Args:
        text: for example `"8 ms"`, `"1%"`, `"300s"`.
        dimension: one of time, bytes, rate, share, energy, money, carbon.
        into: the unit of the result; the dimension's base unit (seconds, bytes, 1, ...) without one.

    Raises:
        UsageError: not a number, or a unit of another dimension.
    """
    from decimal import Decimal

    match, scales = _NUMBER.match(text), _SCALES[dimension]
    if match is None:
        raise UsageError(f"`{text}` is not a number with a unit", hint=_how_to_write(text, dimension))
    unit = match[2]
    if unit and unit not in scales:
        raise UsageError(f"`{unit}` is not a unit of {dimension} in `{text}`", hint=f"use one of {', '.join(scales)}")
    if not unit and dimension not in ("rate", "share"):
        raise UsageError(f"`{text}` has no unit of {dimension}", hint=f"use one of {', '.join(scales)}")
    factor = Decimal(str(scales.get(unit, 1))) / Decimal(str(scales[into] if into else 1))
    # In decimals, so that 35% is 0.35 and 8.3 ms are 8.3 ms, to the last bit.
    value = float(Decimal(match[1]) * factor) if math.isfinite(float(match[1])) else math.inf
    if not math.isfinite(value):
        raise UsageError(f"`{text}` is too large a number", hint=_how_to_write(text, dimension))
    return value


def _how_to_write(text: str, dimension: str) -> str:
    if "," in text:
        return "write `1.5` for one and a half, and `1_500` for fifteen hundred"
    return f"write for example `{_EXAMPLES[dimension]}`"


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


def digits(value: float, noise: float | None, full: float | None = None) -> str:
    """`value` rounded so that its last digit is about the size of `noise`.

    Args:
        value: the number; one that is not finite is said in words.
        noise: half of its interval, in the same unit. Without one: three significant digits, and all digits before
            the point.
        full: what is never claimed unless it is reached, such as 100 for percent. A value just below it gets as many
            digits as it takes to see the difference: 99.996, not 100.0.
    """
    if not math.isfinite(value):
        return "not a number" if math.isnan(value) else f"{'-' if value < 0 else ''}infinite"
    noisy = noise is not None and noise > 0 and math.isfinite(noise)
    # Rounded to one digit first: a noise of 0.096 is 0.1 to a reader, and takes one decimal, not two.
    places = -int(f"{noise:.0e}".partition("e")[2]) if noisy else max(0, 2 - _exponent(value))
    if full is not None and 0 < value < full <= round(value, places):
        places = max(places, 0)
        while round(value, places) >= full and places < _MOST_PLACES:
            places += 1
        value = min(value, full - 10.0**-places)
    return _write(value, places)


def with_unit(text: str, unit: str) -> str:
    """A written number and its unit: `7.81 ms`, `0.3%`."""
    return f"{text}{unit}" if unit == "%" else f"{text} {unit}".rstrip()


def write(value: float, unit: str) -> str:
    """A number without an interval in the unit that people read it in: `97.8 MiB`, `812 B`, `0.300%`."""
    scaled, shown = scale(value, unit)
    return with_unit(digits(scaled, least(shown)), shown)


def count(value: float, unit: str = "") -> str:
    """A plain count with a decimal prefix: `25.6 M`, `8.21 GFLOP`, `812`."""
    for factor, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= factor:
            return with_unit(digits(value / factor, None), f"{prefix}{unit}")
    return with_unit(f"{value:,.0f}", unit)


def least(unit: str) -> float | None:
    """The noise to write a number with that has no interval: below a KiB bytes are counted, without decimals."""
    return 1.0 if unit == "B" else None


def _exponent(value: float) -> int:
    """The power of ten of the first significant digit; 0 for 0."""
    return math.floor(math.log10(abs(value))) if value else 0


def _write(value: float, places: int) -> str:
    if places > _MOST_PLACES - 3 and 0 < abs(value) < 1e-3:
        return f"{value:.{min(max(0, places + _exponent(value)), 6)}e}"
    if abs(value) >= 1e15:
        return f"{value:.2e}"
    rounded = round(value, places) + 0.0  # adding 0 turns -0.0 into 0.0
    return f"{rounded:,.{min(max(0, places), _MOST_PLACES)}f}"
