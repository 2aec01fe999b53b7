"""A bundle on a machine with NumPy, one runtime and a small part of Portolan: nothing else can be imported there."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))

import portolan
from portolan.bundle import write_bundle
from support.bundles import install_tiny, make_parts, use_site, weights

#: All of Portolan that such a machine gets.
PART = ("__init__.py", "errors.py", "units.py", "core", "targets", "backends", "bundle")
#: Runs the entry module with everything blocked that must not be needed, and says what was imported after all.
RUN = """
import sys

BLOCKED = {"onnx", "scipy", "click", "rich", "msgspec", "onnxslim", "tomli_w", "torch", "openvino", "optuna", "sklearn"}
BLOCKED ^= set(sys.argv.pop(1).split(","))  # those that are named change sides

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in BLOCKED:
            raise ModuleNotFoundError(f"No module named '{name}' (blocked by the test)", name=name)

sys.meta_path.insert(0, Absent())
import runpy
try:
    runpy.run_module("portolan.bundle", run_name="__main__", alter_sys=True)
finally:
    print("loaded: " + " ".join(sorted({m.partition(".")[0] for m in sys.modules})), file=sys.stderr)
    print("parts: " + " ".join(sorted(m for m in sys.modules if m.startswith("portolan."))), file=sys.stderr)
"""
#: ONNX Runtime with nothing round it, as a plug-in.
ORT = """
import os
from portolan.core.backend import Backend, Executable

class Session(Executable):
    def __init__(self, path):
        os.environ["ORT_DISABLE_TELEMETRY"] = "1"
        import onnxruntime
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    def run(self, inputs):
        names = [output.name for output in self._session.get_outputs()]
        return dict(zip(names, self._session.run(names, dict(inputs))))
    def save(self, folder):
        raise NotImplementedError

class Ort(Backend):
    name = "plainort"
    distributions = ("onnxruntime",)
    module = "onnxruntime"
    fix = "pip install onnxruntime"
    def compile(self, model, target):
        return Session(model.path)
    def load(self, folder):
        return Session(folder / "model.onnx")

plainort = Ort()
"""


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The small part of Portolan, and two backends as plug-ins."""
    site = install_tiny(tmp_path / "machine")
    (site / "plain_ort.py").write_text(ORT)
    info = site / "plain_ort-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: plain-ort\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[portolan.backends]\nplainort = plain_ort:plainort\n")
    source = Path(portolan.__file__).parent
    for name in PART:
        place = site / "portolan" / name
        place.parent.mkdir(exist_ok=True)
        copy: Any = shutil.copytree if (source / name).is_dir() else shutil.copyfile
        copy(source / name, place)
    use_site(monkeypatch, site)
    return site


def run(machine: Path, *arguments: str, block: str = "none") -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": str(machine), "HOME": str(machine)}
    argv = [sys.executable, "-c", RUN, block, *arguments]
    return subprocess.run(argv, env=env, cwd=machine, capture_output=True, text=True, check=False)


@pytest.fixture
def onnx_bundle(tmp_path: Path, machine: Path) -> Path:
    """The product as an ONNX file, to be run by ONNX Runtime."""
    from onnx import TensorProto, helper, numpy_helper

    parts = make_parts(tmp_path / "other", backend="plainort")
    compiled = tmp_path / "onnx"
    compiled.mkdir()
    values = [numpy_helper.from_array(array, name) for name, array in weights().items()]
    nodes = [
        helper.make_node("Gemm", ["x", "w", "b"], ["y"]),
        helper.make_node("ArgMax", ["y"], ["label"], axis=1, keepdims=0),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4])
    outputs = [
        helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 3]),
        helper.make_tensor_value_info("label", TensorProto.INT64, ["N"]),
    ]
    graph = helper.make_graph(nodes, "product", [x], outputs, values)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    (compiled / "model.onnx").write_bytes(model.SerializeToString())
    import dataclasses

    recipe = dataclasses.replace(parts.recipe, options={})
    return write_bundle(tmp_path / "onnx.portolan", dataclasses.replace(parts, compiled=compiled, recipe=recipe))


def test_it_runs_there_on_a_runtime_of_its_own(tmp_path: Path, machine: Path) -> None:
    path = write_bundle(tmp_path / "p.portolan", make_parts(tmp_path / "built"))
    done = run(machine, str(path), "--verify", "--json", block="onnxruntime")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["verified"] is True
    loaded = next(line for line in done.stderr.splitlines() if line.startswith("loaded: ")).split()
    assert not {"onnx", "onnxruntime", "scipy", "click", "rich", "msgspec", "tomli_w"} & set(loaded)
    parts = next(line for line in done.stderr.splitlines() if line.startswith("parts: ")).split()[1:]
    assert all(name.split(".")[1] in ("errors", "units", "core", "targets", "backends", "bundle") for name in parts)


def test_it_runs_there_on_onnx_runtime(machine: Path, onnx_bundle: Path) -> None:
    done = run(machine, str(onnx_bundle), "--verify", "--json")
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["verified"] is True
    assert max(difference["worst"] for difference in answer["differences"]) < 1e-5
    assert not (machine / ".cache").exists(), "the runtime wrote below the home directory"


@pytest.mark.parametrize(
    ("backend", "block"), [("onnxruntime", "none"), ("openvino", "openvino,onnxruntime"), ("reference", "onnx")]
)
def test_what_pack_makes_runs_there(tmp_path: Path, machine: Path, backend: str, block: str) -> None:
    """The project's own model for its own backends, which are more than those of this test; all else is blocked."""
    if backend == "openvino":
        pytest.importorskip("openvino")
    assert portolan.pack("demo:digits", backend=backend, out=tmp_path / "d.portolan").verified
    done = run(machine, str(tmp_path / "d.portolan"), "--verify", "--json", block=block)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["verified"] is True
    loaded = next(line for line in done.stderr.splitlines() if line.startswith("loaded: ")).split()
    assert {"onnx", "onnxruntime", "openvino", "scipy", "click", "rich", "torch"} & set(loaded) <= {backend, "onnx"}
    assert ("onnx" in loaded) == (backend == "reference")


def test_it_is_told_there_what_is_missing(machine: Path, onnx_bundle: Path) -> None:
    """Without the runtime: the same bundle opens, and says which command makes it run."""
    shutil.rmtree(machine / "tiny_runtime-1.2.dist-info")
    (machine / "plain_ort.py").write_text(ORT.replace('module = "onnxruntime"', 'module = "onnxruntime_gone"'))
    assert run(machine, str(onnx_bundle)).returncode == 0
    done = run(machine, str(onnx_bundle), "--verify", "--json")
    assert done.returncode == 4
    error = json.loads(done.stdout)["error"]
    assert error["hint"] == "pip install onnxruntime"
    assert "`plainort`, which is not ready here" in error["message"]


def test_python_there(tmp_path: Path, machine: Path) -> None:
    """Three lines of a service: open, run, close."""
    path = write_bundle(tmp_path / "p.portolan", make_parts(tmp_path / "built"))
    code = (
        "import numpy, sys\nfrom portolan.bundle import open_bundle\n"
        "with open_bundle(sys.argv[1]) as bundle:\n"
        "    print(bundle.run({'x': numpy.ones((1, 4), numpy.float32)})['y'].tolist())\n"
    )
    env = {**os.environ, "PYTHONPATH": str(machine)}
    done = subprocess.run([sys.executable, "-c", code, str(path)], env=env, capture_output=True, text=True, check=True)
    expected = np.ones((1, 4), np.float32) @ weights()["w"] + weights()["b"]
    assert np.array(json.loads(done.stdout)) == pytest.approx(expected)
