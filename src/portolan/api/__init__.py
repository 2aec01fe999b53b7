"""The verbs as functions: same names and keywords as the command line, returning frozen objects with `to_json()`.

Nothing heavy is imported before a verb needs it.
"""

from __future__ import annotations

from portolan.api.checking import bench, check, open, open_study, report
from portolan.api.delivering import deploy, pack, serve
from portolan.api.improving import compress, optimize
from portolan.api.looking import doctor, inspect, load
from portolan.api.managing import env, target
from portolan.api.result import Progress, Result, Shapes

__all__ = [
    "Progress",
    "Result",
    "Shapes",
    "bench",
    "check",
    "compress",
    "deploy",
    "doctor",
    "env",
    "inspect",
    "load",
    "open",
    "open_study",
    "optimize",
    "pack",
    "report",
    "serve",
    "target",
]
