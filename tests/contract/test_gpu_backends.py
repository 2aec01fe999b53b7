"""Backends keep the contract on each GPU that is here: `make test-gpu`. Without one, each says what it lacks."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import test_torch_backend as on_the_processor
from test_environment_backends import HERE, RUN

import portolan
from portolan.backends.onnxruntime import onnxruntime
from portolan.backends.torch import torch
from portolan.backends.xla import xla
from portolan.core import environments, interpreters
from portolan.core.backend import Backend
from portolan.testing.backend import BackendContract
from portolan.testing.models import Case, cases, this_machine

pytestmark = pytest.mark.hardware
exported = on_the_processor.exported


def ready(backend: Backend, device: str) -> None:
    """Skips what this machine, or its packages, cannot do: in the words that `doctor` has for it."""
    target = this_machine()
    support = backend.devices(target).get(device)
    if support is None:
        pytest.skip(f"no GPU: {', '.join(target.accelerators) or 'nothing is plugged in'}")
    if not support.ready:
        pytest.skip(f"{support.reason}: {support.fix}")


class OnAGPU(BackendContract):
    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def there(cls) -> None:
        ready(cls.backend, cls.options["device"])


class TestOnnxRuntimeCuda(OnAGPU):
    backend = onnxruntime
    options = {"device": "cuda"}


class TestOnnxRuntimeTensorRt(OnAGPU):
    backend = onnxruntime
    options = {"device": "tensorrt"}

    def cases(self, folder: Path) -> list[Case]:
        return [case for case in cases(folder) if case.other is None]


class TestTorchCuda(OnAGPU, on_the_processor.TestTorch):
    backend = torch
    options = {"device": "cuda"}


def test_graphs_on_the_gpu_operator_by_operator(tmp_path: Path) -> None:
    ready(torch, "cuda")
    for case in cases(tmp_path):
        executable = torch.compile(case.model, this_machine(), device="cuda", compiler="eager")
        case.check(executable.run(case.inputs), 1e-4)
        assert executable.facts()["device"] == "cuda"


@pytest.mark.timeout(900)
def test_xla_keeps_the_contract_where_it_lives(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(environments.VARIABLE, os.environ.get("PORTOLAN_TEST_ENVS", "/nowhere"))
    ready(xla, "cuda")
    python = interpreters.python_for("xla") or [sys.executable]
    lent = ":".join(path for path in sys.path if path.endswith("site-packages"))
    options = ["-q", "-p", "no:cacheprovider", "--rootdir", str(HERE), "-c", os.devnull]
    command = [*python, "-P", "-c", RUN, lent, str(HERE / "on_xla.py"), *options, "-k", "TestXla"]
    env = os.environ | {"PYTHONPATH": str(Path(portolan.__file__).parents[1]), "PORTOLAN_TEST_DEVICE": "cuda"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
