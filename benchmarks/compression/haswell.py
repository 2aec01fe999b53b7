"""Does int8 give the same answers on a processor without VNNI? `python benchmarks/compression/haswell.py`.

x86 processors with AVX2 only add 8-bit products in 16 bits, which overflow. `quantize` reads the target's features:
there, static weights get seven bits (`s7`), or unsigned eight (`u8`). This quantizes a small network whose sums reach
the limit, and `demo:digits`, for such a processor and for one with VNNI; runs each here and under QEMU's Haswell with
the same interpreter and ONNX Runtime; and prints the largest difference of the outputs. Needs `qemu-x86_64` (Debian:
`apt-get install qemu-user`) and an x86 machine with VNNI. Exits with 1 if an artefact for AVX2 answers differently, or
one for VNNI does not: then this could not tell.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from portolan.core.data import load_data
from portolan.core.graph import load_model
from portolan.core.model import Model
from portolan.core.passes import Context
from portolan.core.target import Target
from portolan.frontends.demo import demo_data
from portolan.passes.quantize import quantize
from portolan.targets.local import local

WIDE = ("amx_int8", "avx512_vnni", "avx_vnni")
#: Float sums in another order differ by this much, relative to the largest output.
CLOSE = 1e-4
CHECK = """
import sys, numpy as np, onnxruntime as ort
options = ort.SessionOptions(); options.intra_op_num_threads = 1
session = ort.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
rows = np.load(sys.argv[2])["rows"]
np.save(sys.argv[3], session.run(None, {session.get_inputs()[0].name: rows})[0])
"""


def main() -> int:
    qemu = shutil.which("qemu-x86_64") or shutil.which("qemu-x86_64-static")
    here = local.detect()
    if qemu is None or here.arch != "x86_64" or not here.has(*WIDE):
        print("needs qemu-x86_64 and an x86 processor with VNNI", file=sys.stderr)
        return 2
    narrow = replace(here, features=tuple(f for f in here.features if f not in WIDE and not f.startswith("avx512")))
    bad = []
    with tempfile.TemporaryDirectory() as scratch:
        for name, (model, rows) in networks(Path(scratch)).items():
            for target, kind in ((here, "s8"), (narrow, "auto"), (narrow, "u8")):
                word = "VNNI" if target is here else "AVX2"
                found = difference(Path(scratch), f"{name}-{word}-{kind}", model, rows, target, kind, qemu)
                print(f"{name:8} for {word}, weights {kind:5} Haswell against here: {found:.2e} of the largest output")
                if (found > CLOSE and target is narrow) or (found <= CLOSE and (target, name) == (here, "edge")):
                    bad.append(f"{name} for {word} with {kind}")
    print("wrong: " + ", ".join(bad) if bad else "artefacts for AVX2 answer alike on both")
    return int(bool(bad))


def networks(folder: Path) -> dict[str, tuple[Model, np.ndarray]]:
    """A layer whose 16-bit sums overflow if weights use all eight bits, and the demo."""
    random = np.random.default_rng(0)
    weight = np.where(random.random((64, 32)) < 0.9, 1.0, -1.0).astype(np.float32)
    rows = random.uniform(0.8, 1.0, (64, 64)).astype(np.float32)
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])], "edge", [value("x", TensorProto.FLOAT, ["n", 64])],
        [value("y", TensorProto.FLOAT, ["n", 32])], [numpy_helper.from_array(weight, "w")],
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), folder / "edge.onnx")
    digits = load_model(demo_data("demo:digits").with_name("digits.onnx"))
    images = next(iter(load_data(str(demo_data("demo:digits")), digits.signature).inputs.values()))
    return {"edge": (load_model(folder / "edge.onnx"), rows), "digits": (digits, images[:64])}


def difference(scratch: Path, name: str, model: Model, rows: np.ndarray, target: Target, kind: str, qemu: str) -> float:
    """The largest difference between the two processors' outputs, relative to the largest output."""
    folder = scratch / name
    folder.mkdir()
    samples = {model.signature.inputs[0].name: rows}
    made = quantize(model, Context(folder, target, samples), mode="static", weight_type=kind)
    np.savez(scratch / "rows.npz", rows=rows[:16])
    (scratch / "check.py").write_text(CHECK)
    python = str(Path(sys.executable).resolve())
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    outputs = []
    for i, prefix in enumerate(([], [qemu, "-cpu", "Haswell"])):
        out = scratch / f"{name}-{i}.npy"
        command = [*prefix, python, str(scratch / "check.py"), str(made.path), str(scratch / "rows.npz"), str(out)]
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=600)
        if done.returncode:
            raise SystemExit(f"{' '.join(command[:4])} failed:\n{done.stderr}")
        outputs.append(np.load(out))
    return float(np.abs(outputs[0] - outputs[1]).max() / np.abs(outputs[0]).max())


if __name__ == "__main__":
    sys.exit(main())
