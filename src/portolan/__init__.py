"""Portolan: find, by measuring, the best way to run a trained model on the hardware at hand, and ship it.

import portolan
study = portolan.optimize("resnet50.onnx", goals=["latency_p95 < 8ms", "accuracy_drop <= 1%"], data="val/")
study.best
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from portolan.api import (
        bench,
        compress,
        deploy,
        doctor,
        env,
        inspect,
        load,
        open,
        optimize,
        pack,
        report,
        serve,
        target,
    )
    from portolan.errors import PortolanError
    from portolan.kernels import kernel, shapes

__version__ = "0.1.0"
__all__ = [
    "PortolanError",
    "__version__",
    "bench",
    "compress",
    "deploy",
    "doctor",
    "env",
    "inspect",
    "kernel",
    "load",
    "open",
    "optimize",
    "pack",
    "report",
    "serve",
    "shapes",
    "target",
]


def __getattr__(name: str) -> Any:
    if name == "PortolanError":
        return importlib.import_module("portolan.errors").PortolanError
    if name in ("kernel", "shapes"):
        return getattr(importlib.import_module("portolan.kernels"), name)
    if name in __all__:
        return getattr(importlib.import_module("portolan.api"), name)
    raise AttributeError(f"module `portolan` has no attribute `{name}`")


def __dir__() -> list[str]:
    return __all__
