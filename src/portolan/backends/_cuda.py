"""What backends need to know about NVIDIA's GPUs before they load: whether the packages here can use the one here.

Nothing is imported and no GPU is touched: what a package was built for, and which libraries it will look for, is read
from its files. Whether it then really runs there is asked after loading, by each backend of its runtime.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from portolan.core import interpreters
from portolan.core.backend import Backend, Support, on_processor
from portolan.core.target import Device, Target
from portolan.errors import NoBackend

#: What no processor computes in.
_ON_GPUS = ("tf32", "f16")
_LOOK = "`portolan doctor` lists what this machine has"
#: What the dynamic loader knows besides the folders that it is told of.
_LOADER = Path("/etc/ld.so.cache")
#: Lines by which packages say which CUDA they were built for: `cuda_version = '13.0'`, `cuda: Optional[str] = '13.0'`.
_BUILT = re.compile(r"^cuda(?:_version)?\b[^=\n]*=\s*['\"](\d+\.\d+)['\"]", re.MULTILINE)


def gpu(target: Target) -> Device | None:
    """The GPU of NVIDIA's that backends use: the first that CUDA counts; None where there is none."""
    return next((device for device in target.devices if device.kind == "cuda"), None)


def built_for(file: Path) -> str | None:
    """The CUDA that a package says in one of its modules it was built for; None where it says none."""
    try:
        found = _BUILT.search(file.read_text(encoding="utf-8", errors="replace"))
    except OSError:
        return None
    return found[1] if found else None


def driven(package: str, built: str, device: Device) -> Support:
    """Whether the driver of `device` runs what `package` was built for: any CUDA of the same number before the dot."""
    if not device.runtime or _major(device.runtime) >= _major(built):
        return Support(True)
    return Support(
        False,
        reason=f"the NVIDIA driver runs CUDA {device.runtime} at most, and `{package}` was built for CUDA {built}",
        fix=f"update the NVIDIA driver, or install `{package}` for CUDA {_major(device.runtime)}",
    )


def missing(backend: str, *names: str) -> str | None:
    """The first of some shared libraries that a process of `backend` would not find; None where all are there.

    Looked for where pip puts NVIDIA's packages, in LD_LIBRARY_PATH, and in the loader's cache.
    """
    try:
        known = _LOADER.read_bytes()
    except OSError:
        known = b""
    folders = list(_folders(backend))
    return next(
        (n for n in names if n.encode() + b"\0" not in known and not any((f / n).exists() for f in folders)), None
    )


def library(backend: str, name: str) -> Path | None:
    """Where pip put a shared library; None where it did not: the loader may know it."""
    return next((folder / name for folder in _folders(backend) if (folder / name).exists()), None)


def _folders(backend: str) -> Iterator[Path]:
    yield from (Path(part) for part in os.environ.get("LD_LIBRARY_PATH", "").split(":") if part)
    if (nvidia := interpreters.folder(backend, "nvidia")) is not None:
        yield from sorted(nvidia.glob("*/lib"))
    if (tensorrt := interpreters.folder(backend, "tensorrt_libs")) is not None:
        yield tensorrt


def python(backend: str) -> str:
    """How a user calls the interpreter that `backend` lives in."""
    found = interpreters.python_for(backend)
    return "python" if found is None or found[0] == sys.executable else found[0]


def demand_able(backend: Backend, options: Mapping[str, Any], target: Target) -> None:
    """Refuses what `target` cannot do before a runtime falls back to its processor. That emulates what it lacks.

    Raises:
        NoBackend: something is missing, with the command that adds it.
    """
    if on_processor(options) and options["precision"] not in _ON_GPUS:
        return
    if lacking := backend.lacks(options, target):
        asked = ", ".join(f"{key}={options[key]}" for key in ("device", "precision") if key in options)
        raise NoBackend(f"`{backend.name}` cannot run with {asked}: {lacking.reason}", hint=lacking.fix or _LOOK)


def _major(version: str) -> int:
    return int(version.partition(".")[0])
