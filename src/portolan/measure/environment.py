"""The conditions of a measurement: load, stolen time, clock, governor, kernel, versions."""

from __future__ import annotations

import platform
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_STEAL = 7
"""Column of stolen time in the first line of /proc/stat, after the word `cpu`."""


@dataclass(frozen=True)
class Ticks:
    """The processor's counted time so far, in clock ticks."""

    total: int
    steal: int


def _read(path: Path) -> str | None:
    with suppress(OSError, UnicodeDecodeError):
        return path.read_text()
    return None


def ticks(root: Path = Path("/")) -> Ticks | None:
    """Reads /proc/stat; None where there is none."""
    text = _read(root / "proc/stat")
    fields = text.split("\n", 1)[0].split() if text else []
    if len(fields) < 2 + _STEAL or fields[0] != "cpu" or not all(field.isdigit() for field in fields[1:]):
        return None
    # Guest time (the last two columns) is already counted as user time.
    counts = [int(field) for field in fields[1 : 2 + _STEAL]]
    return Ticks(sum(counts), counts[_STEAL])


def _steal(since: Ticks | None, now: Ticks | None) -> float | None:
    if since is None or now is None or now.total <= since.total:
        return None
    return max(0.0, (now.steal - since.steal) / (now.total - since.total))


def _load(root: Path) -> list[float] | None:
    text = _read(root / "proc/loadavg")
    with suppress(ValueError):
        if text and len(loads := [float(word) for word in text.split()[:3]]) == 3:
            return loads
    return None


def _clock(root: Path) -> float | None:
    """Mean of the cores' present clock in MHz."""
    clocks = []
    for line in (_read(root / "proc/cpuinfo") or "").splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "cpu MHz":
            with suppress(ValueError):
                clocks.append(float(value))
    if clocks:
        return round(sum(clocks) / len(clocks), 1)
    text = _read(root / "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq")
    with suppress(ValueError):
        return float(text) / 1000 if text else None
    return None


def environment(since: Ticks | None = None, root: Path = Path("/")) -> dict[str, Any]:
    """What a measurement was made under; a fact that this system does not tell is None.

    Args:
        since: `ticks()` at the start of the measurement; without it stolen time is not known.
        root: where /proc and /sys are.

    Returns:
        `load` (1, 5 and 15 minutes), `steal` (share of the time since `since` that a hypervisor took), `governor`,
        `clock_mhz`, `kernel`, `machine`, and `versions` of python, portolan and numpy.
    """
    import numpy as np

    import portolan

    governor = _read(root / "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
    return {
        "load": _load(root),
        "steal": _steal(since, ticks(root)),
        "governor": governor.strip() if governor else None,
        "clock_mhz": _clock(root),
        "kernel": f"{platform.system()} {platform.release()}",
        "machine": platform.machine(),
        "versions": {
            "python": platform.python_version(),
            "portolan": portolan.__version__,
            "numpy": np.__version__,
        },
    }
