"""PyTorch on NVIDIA's GPUs: whether its package can use one, and what it computes in there."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from portolan.backends import _cuda
from portolan.core import interpreters
from portolan.core.backend import Support
from portolan.core.silence import runtime
from portolan.core.target import Target
from portolan.errors import PortolanError

Device = Literal["cpu", "cuda"]
#: Where PyTorch looks for CUDA's headers when nothing names a folder.
_TOOLKIT = Path("/usr/local/cuda")


def devices(name: str, target: Target) -> dict[str, Support]:
    """Whether the package of the backend `name` can use the GPU of `target`, and compile for it."""
    device, folder = _cuda.gpu(target), interpreters.folder(name, "torch")
    if device is None or folder is None:
        return {}
    built, pip = _cuda.built_for(folder / "version.py"), f"{_cuda.python(name)} -m pip install"
    if built is None:
        version = (interpreters.distribution(name, "torch") or "").partition("+")[0]
        fix = f"{pip} --force-reinstall 'torch=={version}'"
        return {"cuda": Support(False, reason="the package `torch` has no code for GPUs, PyPI's has", fix=fix)}
    found = _cuda.driven("torch", built, device)
    if found.ready and interpreters.folder(name, "triton") is None:
        found = Support(False, reason="Inductor writes for GPUs in Triton, which is not installed", fix=f"{pip} triton")
    if found.ready and not _toolkit():
        reason = "Inductor's code needs CUDA's headers, and neither CUDA_HOME nor `nvcc` says where they are"
        found = Support(False, reason=reason, fix="apt-get install nvidia-cuda-toolkit")
    return {"cuda": found}


def _toolkit() -> bool:
    """Whether PyTorch will find CUDA's headers: by the rules of `torch.utils.cpp_extension`."""
    named = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    return Path(named).is_dir() if named else shutil.which("nvcc") is not None or _TOOLKIT.is_dir()


def compute_in(torch: Any, precision: str) -> None:
    """Sets what products and convolutions of f32 are computed in on a GPU; without it convolutions take tf32."""
    torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    torch.backends.cudnn.allow_tf32 = precision == "tf32"


def demand_gpu() -> None:
    """Refuses to go on where PyTorch, once loaded, sees no GPU: it would fail later, with less to say.

    Raises:
        PortolanError: there is none for it.
    """
    torch = runtime("torch")
    if not torch.cuda.is_available():
        raise PortolanError(
            "`torch` was asked for device `cuda` and sees no GPU it can use",
            hint="`portolan doctor` says what is missing; CUDA_VISIBLE_DEVICES may hide it",
        )


def check_gpu(metadata: Mapping[str, str], capability: tuple[int, int]) -> None:
    """Compares the GPU that a package was compiled for with this one, before a kernel of it is started.

    Args:
        metadata: what the package says about itself.
        capability: compute capability of this GPU.

    Raises:
        PortolanError: the code is for another.
    """
    here = str(10 * capability[0] + capability[1])
    wanted = metadata.get("AOTI_COMPUTE_CAPABILITY") or here
    if wanted != here:
        raise PortolanError(
            f"the package was compiled for GPUs of compute capability `{_dotted(wanted)}`, this one has "
            f"`{_dotted(here)}`",
            hint="compile the model again on this machine",
        )


def _dotted(capability: str) -> str:
    return f"{capability[:-1]}.{capability[-1]}"


def moved(program: Any, place: str = "cuda:0") -> Any:
    """An exported program with its weights, constants and examples on a device."""
    return runtime("torch.export.passes").move_to_device_pass(program, place)
