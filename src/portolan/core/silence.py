"""Importing runtimes with their telemetry switched off.

ONNX Runtime writes a device id below the home directory as it is imported and looks up its vendor's collector seconds
later; OpenVINO does the same through the package `openvino_telemetry`; Hugging Face's libraries ask a hub. Each can be
stopped only before the import, so nothing in Portolan imports a runtime but through `runtime`.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from collections.abc import Iterator
from types import ModuleType

_HUB = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
_ENVIRONMENT = {
    "onnxruntime": {"ORT_DISABLE_TELEMETRY": "1"},
    "huggingface_hub": _HUB,
    "timm": _HUB,
    "transformers": _HUB,
}
#: Modules that are made to look uninstalled: their owners fall back to a stub of their own that sends nothing.
_ABSENT = ("openvino_telemetry",)


def runtime(name: str) -> ModuleType:
    """Imports the module `name` (`onnxruntime`, `openvino.opset13`, ...) silenced, and only what concerns it.

    A user's own process keeps its other settings: it may talk to a hub that a worker must not talk to.

    Raises:
        ImportError: it is not installed.
    """
    os.environ.update(_ENVIRONMENT.get(name.partition(".")[0], {}))
    for absent in _ABSENT:
        sys.modules[absent] = None  # type: ignore[assignment]
    return importlib.import_module(name)


def quiet_environment() -> dict[str, str]:
    """The environment variables that silence every runtime at once, for processes that Portolan starts."""
    return {key: value for settings in _ENVIRONMENT.values() for key, value in settings.items()}


def silence() -> None:
    """Silences every runtime in this process: a worker's first act, before it runs anybody's code."""
    os.environ.update(quiet_environment())
    for absent in _ABSENT:
        sys.modules[absent] = None  # type: ignore[assignment]


@contextlib.contextmanager
def environment(**settings: str) -> Iterator[None]:
    """Environment variables for a while, for libraries that read a setting nowhere else."""
    before = {key: os.environ.get(key) for key in settings}
    os.environ.update(settings)
    try:
        yield
    finally:
        for key, value in before.items():
            if value is None:
                os.environ.pop(key, None)
            else:
                os.environ[key] = value
