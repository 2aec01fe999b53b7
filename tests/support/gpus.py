"""GPUs for machines without: a driver in C, and packages that have what Portolan looks for in them."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
from pathlib import Path
from types import ModuleType

import pytest

from portolan.core import cuda
from portolan.core.target import Device

HERE = Path(__file__).parent
H200 = Device("cuda", 0, "NVIDIA H200", 139 * 2**30, "9.0", "580.65.06", "13.0")
LIBRARIES = ("nvidia/cu13/lib/libcublasLt.so.13", "nvidia/cudnn/lib/libcudnn.so.9")
TENSORRT = ("tensorrt_libs/libnvinfer.so.10", "tensorrt_libs/libnvonnxparser.so.10")


def driver(folder: Path) -> Path:
    """A `libcuda` whose GPUs are processors; STUB_GPUS and STUB_INIT say how it is. Skips without a C compiler."""
    path = folder / "libcuda.so"
    built((HERE / "cuda" / "driver.c").read_text(), path)
    return path


def built(code: str, path: Path) -> None:
    """A shared library of some C. Skips without a compiler."""
    if shutil.which("gcc") is None:
        pytest.skip("needs gcc")
    subprocess.run(["gcc", "-shared", "-fPIC", "-x", "c", "-", "-o", path, "-ldl"], input=code, text=True, check=True)


def use_driver(path: Path, patch: pytest.MonkeyPatch, **settings: str) -> None:
    """Makes it this process's driver, with nothing known of another one."""
    patch.setenv(cuda.VARIABLE, str(path))
    for name, value in settings.items():
        patch.setenv(name, value)
    cuda._asked.cache_clear()


def fake() -> ModuleType:
    """The stand-in for ONNX Runtime as a module of another name."""
    spec = importlib.util.spec_from_file_location("fake_ort", HERE / "gpu" / "onnxruntime.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def package(folder: Path, *, cuda: str | None = "13.0", files: tuple[str, ...] = (*LIBRARIES, *TENSORRT)) -> Path:
    """A folder to put first on the path: `onnxruntime-gpu` built for a CUDA, and libraries beside it."""
    capi = folder / "onnxruntime" / "capi"
    capi.mkdir(parents=True)
    shutil.copy(HERE / "gpu" / "onnxruntime.py", capi.parent / "__init__.py")
    name = "onnxruntime" if cuda is None else "onnxruntime_gpu"
    about = folder / f"{name}-9.9.9.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: 9.9.9\n")
    if cuda is not None:
        (capi / "build_and_package_info.py").write_text(f"package_name = 'onnxruntime-gpu'\ncuda_version = '{cuda}'\n")
        (capi / "libonnxruntime_providers_cuda.so").touch()
        (capi / "libonnxruntime_providers_tensorrt.so").write_bytes(b"\x7fELF\0libcudart.so.13\0libnvinfer.so.10\0")
    for file in files:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).touch()
    return folder
