"""XLA on NVIDIA's GPUs: whether JAX has its plug-in for CUDA, and what it computes in there."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any

from portolan.backends import _cuda
from portolan.core import interpreters
from portolan.core.backend import CPU, Support
from portolan.core.target import Target
from portolan.errors import NoBackend

#: How JAX names an arithmetic of products.
_ARITHMETIC = {"f32": "highest", "tf32": "tensorfloat32"}
_PLUGIN = re.compile(r"xla_cuda(\d+)")


def devices(name: str, target: Target) -> dict[str, Support]:
    """Whether the packages of the backend `name` can use the GPU of `target`."""
    device = _cuda.gpu(target)
    if device is None or interpreters.folder(name, "jax") is None:
        return {}
    if built := _plugin(name):
        return {"cuda": _cuda.driven(f"jax-cuda{built}-plugin", f"{built}.0", device)}
    version = interpreters.distribution(name, "jax")
    flavour = "cuda12" if device.runtime.startswith("12.") else "cuda13"
    fix = f"{_cuda.python(name)} -m pip install 'jax[{flavour}]=={version}'"
    return {"cuda": Support(False, reason="JAX's plug-in for CUDA is not installed", fix=fix)}


def _plugin(name: str) -> str | None:
    """The CUDA that JAX's plug-in is for: it is a folder beside those of other plug-ins."""
    folder = interpreters.folder(name, "jax_plugins")
    found = [_PLUGIN.fullmatch(path.name) for path in folder.iterdir()] if folder is not None else []
    return max((match[1] for match in found if match), default=None)


@contextlib.contextmanager
def blamed(device: str) -> Iterator[None]:
    """Says what JAX means by its error where it finds no device.

    Raises:
        NoBackend: it found none.
    """
    try:
        yield
    except RuntimeError as error:
        if device == CPU:
            raise
        told = str(error).strip().splitlines()[0][:300]
        raise NoBackend(
            f"`xla` was asked for device `{device}`, and JAX does not reach it: {told}",
            hint="`portolan doctor` says what is missing; CUDA_VISIBLE_DEVICES may hide it",
        ) from error


def arithmetic(jax: Any, device: str, precision: str) -> AbstractContextManager[Any]:
    """What products and convolutions are traced in: on a GPU, JAX would take tf32 for f32 unless told otherwise."""
    if device == CPU:
        return contextlib.nullcontext()
    found: AbstractContextManager[Any] = jax.default_matmul_precision(_ARITHMETIC[precision])
    return found


def kind(device: Any) -> str:
    """What the option `device` calls one of JAX's devices, which calls all of its GPUs `gpu`."""
    return "cuda" if device.platform == "gpu" else str(device.platform)


def described(device: Any) -> list[str]:
    """What code for a GPU depends on: its kind, and the version of CUDA behind the plug-in."""
    return [str(device.device_kind), str(device.client.platform_version)]
