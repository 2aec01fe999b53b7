"""A real Triton Inference Server on this machine, without a container: the one in NVIDIA's `nvidia-pytriton` wheel.

It has no backend for ONNX, and what its Python backend answers comes out empty, so nothing is computed with it. It
reads configurations, warms models up, and speaks the protocol.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import sysconfig
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

HOW = "pip install --no-deps --target FOLDER nvidia-pytriton==0.7.0, then PORTOLAN_TEST_TRITON=FOLDER"
#: A model of the Python backend: outputs as the configuration says, with a row for each of the first input's.
MODEL = """
import json
import numpy as np
import triton_python_backend_utils as utils

class TritonPythonModel:
    def initialize(self, args):
        self.config = json.loads(args["model_config"])

    def execute(self, requests):
        answers = []
        for request in requests:
            rows = request.inputs()[0].as_numpy().shape[0]
            outputs = []
            for output in self.config["output"]:
                shape = [rows, *(int(d) for d in output["dims"])] if self.config["max_batch_size"] else [
                    rows if int(d) < 0 else int(d) for d in output["dims"]]
                dtype = utils.triton_string_to_numpy(output["data_type"])
                outputs.append(utils.Tensor(output["name"], np.zeros(shape, dtype)))
            answers.append(utils.InferenceResponse(outputs))
        return answers
"""


@dataclass
class Triton:
    """A Triton that runs.

    Attributes:
        address: of its HTTP door.
        metrics: of its metrics.
        log: what it printed.
    """

    address: str
    metrics: str
    log: Path


def package() -> Path:
    """Where the wheel is unpacked; skips where it is not."""
    given = os.environ.get("PORTOLAN_TEST_TRITON")
    if not given or not (Path(given) / "pytriton" / "tritonserver" / "bin" / "tritonserver").is_file():
        pytest.skip(f"needs a real Triton: {HOW}")
    return Path(given).resolve()


def served_by_python(repository: Path) -> None:
    """Has Triton's Python backend run what is configured for ONNX Runtime: all else in the configuration stays."""
    for config in repository.glob("*/config.pbtxt"):
        text = config.read_text()
        assert 'backend: "onnxruntime"\ndefault_model_filename: "model.onnx"\n' in text
        text = text.replace('backend: "onnxruntime"\ndefault_model_filename: "model.onnx"\n', 'backend: "python"\n')
        config.write_text(text)
        (config.parent / "1" / "model.py").write_text(MODEL)


def said(repository: Path, folder: Path) -> str:
    """What Triton says of a repository that it cannot serve."""
    process, log = _started(repository, folder, [_free() for _ in range(3)])
    try:
        assert process.wait(60) != 0
    finally:
        process.kill()
    return log.read_text(errors="replace")


@contextlib.contextmanager
def running(repository: Path, folder: Path) -> Iterator[Triton]:
    """Triton, once it is ready."""
    ports = [_free() for _ in range(3)]
    process, log = _started(repository, folder, ports)
    address = f"127.0.0.1:{ports[0]}"
    try:
        end = time.monotonic() + 60
        while not _ready(address):
            alive = process.poll() is None and time.monotonic() < end
            assert alive, log.read_text(errors="replace")
            time.sleep(0.1)
        yield Triton(address, f"http://127.0.0.1:{ports[2]}/metrics", log)
    finally:
        process.terminate()
        process.wait(40)


def _started(repository: Path, folder: Path, ports: list[int]) -> tuple[subprocess.Popen[bytes], Path]:
    site = package()
    root = site / "pytriton" / "tritonserver"
    stub = root / "python_backend_stubs" / f"{sys.version_info.major}.{sys.version_info.minor}"
    backends, log = folder / "backends", folder / "triton.log"
    shutil.copytree(root / "backends" / "python", backends / "python", dirs_exist_ok=True)
    program = shutil.copy2(root / "bin" / "tritonserver", folder / "tritonserver")
    copied = shutil.copy2(stub / "triton_python_backend_stub", backends / "python")
    for file in (program, copied):
        Path(file).chmod(0o755)
    libraries = [stub, site / "nvidia_pytriton.libs", sysconfig.get_config_var("LIBDIR")]
    path = [site, sysconfig.get_path("purelib")]
    environment = {
        **os.environ,
        "LD_LIBRARY_PATH": os.pathsep.join(map(str, libraries)),
        "PYTHONPATH": os.pathsep.join(map(str, path)),
    }
    argv = [
        program, f"--model-repository={repository}", f"--backend-directory={backends}",
        "--pinned-memory-pool-byte-size=0", "--allow-gpu-metrics=false", f"--http-port={ports[0]}",
        f"--grpc-port={ports[1]}", f"--metrics-port={ports[2]}",
    ]  # fmt: skip
    with log.open("wb") as sink:
        return subprocess.Popen(argv, env=environment, stdout=sink, stderr=sink), log


def _free() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def _ready(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"http://{address}/v2/health/ready", timeout=2) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False
