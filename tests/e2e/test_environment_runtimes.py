"""Runtimes in environments of their own, from one end to the other, where somebody has made those environments."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import portolan
from portolan.core import environments
from portolan.errors import NoBackend, UsageError
from portolan.testing.models import this_machine
from support.envs import made_environment
from support.studies import Lab

pytestmark = pytest.mark.slow

#: What compiles, and must not be needed to run what was compiled.
COMPILERS = {
    "executorch": ["executorch.backends.xnnpack", "onnx"],
    "iree": ["iree.compiler", "onnx"],
    "litert": ["litert_torch", "torch", "jax", "onnx"],
    "ncnn": ["pnnx", "onnx"],
    "tvm": ["tvm.relax.frontend.onnx", "onnx"],
}

_COMPILE = """
import json, sys
from pathlib import Path
import numpy as np
from portolan.core.registry import backend as find
from portolan.core.target import Target
from portolan.testing.models import convolutions
name, target, folder, blocked = json.loads(sys.argv[1])
backend, folder = find(name), Path(folder)
case = convolutions(folder, rows=1)
executable = backend.compile(case.model, Target.from_json(target), **backend.schema.check({}))
(folder / "saved").mkdir()
executable.save(folder / "saved")
np.savez(folder / "case.npz", inputs=case.inputs["image"], expected=case.expected["classes"])
"""
_LOAD = """
import json, sys
from pathlib import Path
import numpy as np
name, target, folder, blocked = json.loads(sys.argv[1])

class Without:  # finds all but the blocked modules, also for who only asks whether they are there
    def __init__(self, finder):
        self.finder = finder
    def find_spec(self, module, path=None, target=None):
        if not any(module == one or module.startswith(one + ".") for one in blocked):
            return self.finder.find_spec(module, path, target)

sys.meta_path[:] = map(Without, sys.meta_path)
from portolan.core.registry import backend as find
backend, folder = find(name), Path(folder)
executable = backend.load(folder / "saved", **backend.schema.check({}))
arrays = np.load(folder / "case.npz")
got = executable.run({"image": arrays["inputs"]})["classes"]
assert np.allclose(got, arrays["expected"], atol=1e-4), got
print("ran")
"""


@pytest.mark.parametrize("name", sorted(COMPILERS))
def test_what_was_compiled_runs_without_its_compiler(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = made_environment(name, monkeypatch)
    question = json.dumps([name, this_machine().to_json(), str(tmp_path), COMPILERS[name]])
    source = str(Path(portolan.__file__).parents[1])
    for code, path in (_COMPILE, os.environ["PATH"]), (_LOAD, ""):
        done = subprocess.run(
            [str(found.python), "-P", "-c", code, question],
            env=os.environ | {"PYTHONPATH": source, "PATH": path}, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip().endswith("ran")


def test_a_bundle_of_native_code_runs_where_its_runtime_lives(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    made_environment("iree", monkeypatch)
    portolan.pack("demo:digits", backend="iree", out="digits.portolan")
    with portolan.open("digits.portolan") as bundle:
        assert any(name.endswith("model.vmfb") for name in bundle.files)
        feeds = bundle.feeds(0)
        with pytest.raises(UsageError, match="compiled code"):
            bundle.run(feeds)
    assert "iree" not in sys.modules
    from portolan.bundle import open_bundle

    with open_bundle("digits.portolan", native=True) as trusted:
        outputs = trusted.run(feeds)
        assert trusted.verify().rows > 0
    assert all(np.isfinite(value).all() for value in outputs.values())
    monkeypatch.setenv(environments.VARIABLE, "/nowhere")
    with open_bundle("digits.portolan", native=True) as trusted, pytest.raises(NoBackend) as caught:
        trusted.run(feeds)
    assert caught.value.hint == "portolan env add iree"


def test_a_search_races_them(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """What cannot take the model is refused with its reason, and the search goes on."""
    made_environment("iree", monkeypatch)
    made_environment("ncnn", monkeypatch)
    study = portolan.optimize(
        "demo:digits", goals=["min latency_p50"], backend=["onnxruntime", "iree", "ncnn"],
        recipe={"passes": [], "options": {"graph_optimization": "all", "threads": 0}}, budget="2min", study="study",
    )  # fmt: skip
    trials = study.to_json()["trials"]
    tried = {t["recipe"]["backend"] for t in trials if t["status"] == "ok"}
    assert {"onnxruntime", "iree"} <= tried
    refused = [t for t in trials if t["recipe"]["backend"] == "ncnn" and t["status"] == "refused"]
    assert refused
    assert "no batch axis" in refused[0]["reason"]
