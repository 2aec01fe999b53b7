"""`deploy --to web`: what a page or Node loads; checked under Node, with a runtime of ours in the real one's place."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

import portolan
from portolan.errors import NoBackend
from support.deploying import emit, one_input, onnx_bundle

NODE = shutil.which("node")
#: Answers with zeros in the shape that the test's bundle has, whatever comes in, and says what came.
RUNTIME = """
export const env = { wasm: {} };
export class Tensor { constructor(type, data, dims) { Object.assign(this, { type, data, dims, location: 'cpu' }); } }
export const InferenceSession = { create: async (model, options) => ({ run: async (feeds) => {
  const { x } = feeds;
  if (new TextDecoder().decode(model) !== 'an ONNX graph') throw new Error('another model');
  return { y: new Tensor('float32', new Float32Array(x.dims[0] * 3), [x.dims[0], 3]) };
} }) };
"""


def made(tmp_path: Path, dtype: str = "float32") -> Path:
    return emit(onnx_bundle(tmp_path, **one_input(dtype)), "web", tmp_path / "out")


def checked(folder: Path) -> subprocess.CompletedProcess[str]:
    package = folder / "node_modules" / "onnxruntime-web"
    package.mkdir(parents=True, exist_ok=True)
    (package / "package.json").write_text('{"name": "onnxruntime-web", "type": "module", "exports": "./index.mjs"}')
    (package / "index.mjs").write_text(RUNTIME)
    return subprocess.run([NODE or "node", "check.mjs"], cwd=folder, capture_output=True, text=True, timeout=60)


def test_its_files(tmp_path: Path) -> None:
    folder = made(tmp_path)
    names = ["about.json", "check.mjs", "compare.mjs", "golden.json", "index.html", "model.mjs", "package.json"]
    assert sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()) == [
        *names[:5], "model.mjs", "model/model.onnx", "package.json",
    ]  # fmt: skip
    about = json.loads((folder / "about.json").read_text())
    assert about["inputs"] == [{"name": "x", "dtype": "float32", "shape": ["N", 4]}]
    pins = Path(portolan.__file__).parent / "emulation" / "pins" / "web" / "package.json"
    assert (
        json.loads((folder / "package.json").read_text())["dependencies"]
        == json.loads(pins.read_text())["dependencies"]
    )
    golden = json.loads((folder / "golden.json").read_text())
    first = golden["inputs"][0]["x"]
    assert len(base64.b64decode(first["base64"])) == 4 * int(np.prod(first["dims"]))


@pytest.mark.skipif(NODE is None, reason="Node is not here")
@pytest.mark.parametrize("dtype", ["float32", "int64", "bool"])
def test_node_says_whether_the_answers_are_the_bundles(tmp_path: Path, dtype: str) -> None:
    folder = made(tmp_path, dtype)
    right = checked(folder)
    assert (right.returncode, right.stdout) == (0, "answers as packed\n")
    golden = json.loads((folder / "golden.json").read_text())
    answer = golden["outputs"]["y"]
    other = np.frombuffer(base64.b64decode(answer["base64"]), np.float32).copy()
    other[1] = 5
    answer["base64"] = base64.b64encode(other.tobytes()).decode()
    (folder / "golden.json").write_text(json.dumps(golden))
    wrong = checked(folder)
    assert (wrong.returncode, wrong.stdout) == (1, "y: 0 in place of 5 at 1\n")


@pytest.mark.skipif(NODE is None, reason="Node is not here")
def test_an_input_that_is_missing_or_has_a_free_size(tmp_path: Path) -> None:
    folder = made(tmp_path)
    checked(folder)
    script = """
import { load } from './model.mjs';
const model = await load();
for (const feeds of [{}, { x: new Float32Array(8) }]) await model.run(feeds).catch((e) => console.log(e.message));
console.log((await model.run({ x: { data: new Float32Array(8), dims: [2, 4] } })).y.dims.join());
"""
    (folder / "ask.mjs").write_text(script)
    done = subprocess.run([NODE or "node", "ask.mjs"], cwd=folder, capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines() == ["the input x is missing: x", "x is N,4: give { data, dims }", "2,3"]


def test_what_a_page_cannot_run(tmp_path: Path) -> None:
    with pytest.raises(NoBackend, match="`openvino` compiled it"):
        emit(onnx_bundle(tmp_path, backend="openvino"), "web", tmp_path / "out")
    with pytest.raises(NoBackend, match="no arrays of string, which `x` holds"):
        emit(onnx_bundle(tmp_path / "s", **one_input("string")), "web", tmp_path / "out")


WEB = Path(os.environ.get("PORTOLAN_TEST_WEB", "")) / "wasm"


@pytest.mark.slow
@pytest.mark.skipif(
    not (WEB / "node_modules").is_dir(), reason="needs PORTOLAN_TEST_WEB, a folder with a target `wasm`"
)
def test_onnx_runtime_web_answers_as_packed(tmp_path: Path) -> None:
    """The real package: a real model, packed, deployed, and checked under Node."""
    bundle = tmp_path / "digits.portolan"
    portolan.pack("demo:digits", backend="onnxruntime", out=bundle)
    portolan.deploy(bundle, to=["web"], out=tmp_path / "out")
    folder = tmp_path / "out" / "web"
    (folder / "node_modules").symlink_to(WEB / "node_modules")
    done = subprocess.run([NODE or "node", "check.mjs"], cwd=folder, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, "answers as packed\n"), done.stderr
