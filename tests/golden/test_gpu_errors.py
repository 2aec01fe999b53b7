"""What backends say of GPUs that are not there or cannot be used, word for word.

After a wanted change: `PORTOLAN_UPDATE_GOLDEN=1 pytest tests/golden/test_gpu_errors.py`, and read the diff.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from portolan.backends import _cuda, _ort_gpu, _torch_gpu, _xla_gpu
from portolan.backends._artefact import Artefact
from portolan.backends.onnxruntime import onnxruntime
from portolan.backends.torch import torch
from portolan.backends.xla import xla
from portolan.core import interpreters
from portolan.testing.models import free_batch, perceptron, this_machine
from support import errors, gpus

GOLDEN = Path(__file__).with_name("gpu_errors.txt")
HERE, WITH = replace(this_machine(), devices=()), replace(this_machine(), devices=(gpus.H200,))
OLD = replace(HERE, devices=(replace(gpus.H200, runtime="12.4"),))


def asked(backend: Any, target: Any, **options: Any) -> Callable[[Path], Any]:
    return lambda folder: backend.compile(perceptron(folder).model, target, **options)


def session(wrong: str, device: str = "cuda") -> Callable[[Path], Any]:
    def run(folder: Path) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("FAKE_ORT", wrong)
            patch.setattr(_ort_gpu, "runtime", lambda name: gpus.fake())
            case = free_batch(folder) if device == "tensorrt" else perceptron(folder)
            _ort_gpu.compiled(Artefact.of(case.model), device, "f32", "ENABLE_ALL")

    return run


def jax(folder: Path) -> None:
    with _xla_gpu.blamed("cuda"):
        raise RuntimeError("Unable to initialize backend 'cuda': no supported devices found")


WRONG: dict[str, Callable[[Path], Any]] = {
    "onnxruntime, and no GPU": asked(onnxruntime, HERE, device="cuda"),
    "torch, and no GPU": asked(torch, HERE, device="cuda"),
    "xla, and no GPU": asked(xla, HERE, device="cuda"),
    "an arithmetic that processors lack": asked(onnxruntime, HERE, precision="tf32"),
    "an arithmetic that only TensorRT has": asked(onnxruntime, WITH, device="cuda", precision="f16"),
    "a package without code for GPUs": asked(onnxruntime, WITH, device="cuda"),
    "a driver that is too old": asked(onnxruntime, OLD, device="cuda"),
    "no TensorRT": asked(onnxruntime, WITH, device="tensorrt"),
    "no provider": session("absent"),
    "fallen back": session("fallback"),
    "work that stays on the processor": session("stray"),
    "a provider that cannot start": session("broken"),
    "a version that does not say": session("old"),
    "free sizes": session("", "tensorrt"),
    "code for another GPU": lambda folder: _torch_gpu.check_gpu({"AOTI_COMPUTE_CAPABILITY": "90"}, (8, 6)),
    "JAX finds none": jax,
}


def told(name: str, folder: Path, patch: pytest.MonkeyPatch) -> str:
    packages = folder / "packages"
    if name != "a package without code for GPUs":
        gpus.package(packages, files=gpus.LIBRARIES)
    else:
        gpus.package(packages, cuda=None)
    patch.setattr(interpreters, "folder", lambda _, module: packages / module if (packages / module).is_dir() else None)
    patch.setattr(_cuda, "_LOADER", folder / "none")
    return errors.told(name, lambda: WRONG[name](folder), folder)


def test_every_error_word_for_word(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LD_LIBRARY_PATH", raising=False)
    said = []
    for i, name in enumerate(WRONG):
        (tmp_path / str(i)).mkdir()
        said.append(told(name, tmp_path / str(i), monkeypatch))
    text = "\n".join(said)
    if os.environ.get("PORTOLAN_UPDATE_GOLDEN"):
        GOLDEN.write_text(text, encoding="utf-8")
    assert text == GOLDEN.read_text(encoding="utf-8")
