"""Weights beyond what one protobuf message holds, in a file that is mostly holes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from portolan.core.graph import load_model
from portolan.core.passes import Context
from portolan.passes.quantize import quantize
from portolan.targets.local import local

SIDE, LAYERS = 8192, 9


def large(folder: Path) -> Path:
    """Nine products whose weights have 2.25 GiB together; the first row of each is there, the rest are zeros."""
    nodes, tensors, last, each = [], [], "x", 4 * SIDE * SIDE
    for i in range(LAYERS):
        tensor = TensorProto(name=f"w{i}", data_type=TensorProto.FLOAT, data_location=TensorProto.EXTERNAL)
        tensor.dims.extend([SIDE, SIDE])
        for key, value in (("location", "weights"), ("offset", str(i * each)), ("length", str(each))):
            tensor.external_data.add(key=key, value=value)
        tensors.append(tensor)
        nodes.append(helper.make_node("MatMul", [last, f"w{i}"], [f"y{i}"]))
        last = f"y{i}"
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", SIDE]) for name in ("x", last)]
    graph = helper.make_graph(nodes, "large", ends[:1], ends[1:], tensors)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    (folder / "large.onnx").write_bytes(proto.SerializeToString())
    with (folder / "weights").open("wb") as file:
        file.truncate(LAYERS * each)
        for i in range(LAYERS):
            row = np.random.default_rng(i).standard_normal(SIDE).astype("f4")
            row[0] = 6  # what the next layer reads is the largest, so 8 bits keep it
            file.seek(i * each)
            file.write(row.tobytes())
    return folder / "large.onnx"


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_weights_of_more_than_two_gigabytes_are_quantized(tmp_path: Path) -> None:
    model = load_model(large(tmp_path))
    out = tmp_path / "out"
    out.mkdir()
    result = quantize(model, Context(out, local.detect()), mode="weights")
    size = sum(path.stat().st_size for path in out.iterdir())
    assert 3.9 < LAYERS * 4 * SIDE * SIDE / size < 4.1
    assert result.features == ("weights:int8",)
    assert result.signature == model.signature
    onnx.checker.check_model(str(result.path))


#: Times its weights that a pass may take in memory: the graph, what it becomes, and what is computed in between.
MOST = 6
APPLIED = """
import json, sys
from pathlib import Path
import numpy as np
from portolan.core import registry
from portolan.core.graph import load_model
from portolan.core.passes import Context
from portolan.targets.local import local
from portolan.worker.memory import limit_memory
source, out, name, options, limit = json.loads(sys.argv[1])
limit_memory(limit)
rows = np.random.default_rng(5).standard_normal((12, 8192)).astype(np.float32)
result = registry.pass_(name)(load_model(Path(source)), Context(Path(out), local.detect(), {"x": rows}), **options)
print(json.dumps([result.operators, result.features]))
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("name", "options", "smaller", "operator"),
    [
        ("simplify", {}, 1, "MatMul"),
        ("quantize", {"mode": "dynamic"}, 4, "MatMulInteger"),
        ("quantize", {"mode": "static"}, 4, "QuantizeLinear"),
        ("quantize", {"mode": "float16"}, 2, "Cast"),
        ("prune", {"score": "magnitude"}, 1, "MatMul"),
    ],
)
def test_passes_on_more_than_two_gigabytes(
    name: str, options: dict[str, object], smaller: float, operator: str, tmp_path: Path
) -> None:
    """Twelve calibration rows, and no more memory than a few times the weights."""
    weights = LAYERS * 4 * SIDE * SIDE
    source, out = large(tmp_path), tmp_path / "out"
    out.mkdir()
    question = json.dumps([str(source), str(out), name, options, int(MOST * weights)])
    done = subprocess.run([sys.executable, "-c", APPLIED, question], capture_output=True, text=True, timeout=800)
    assert done.returncode == 0, done.stderr[-2000:]
    operators, _ = json.loads(done.stdout)
    assert operators[operator] >= LAYERS
    size = sum(path.stat().st_size for path in out.iterdir())
    assert weights / size == pytest.approx(smaller, rel=0.05)
    onnx.checker.check_model(str(out / "model.onnx"))
    proto = onnx.load(out / "model.onnx", load_external_data=False)
    held = {entry.value for t in proto.graph.initializer for entry in t.external_data if entry.key == "location"}
    assert held == ({"model.data"} if size > 2**31 else set())
