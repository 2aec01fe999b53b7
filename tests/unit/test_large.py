"""Weights beyond what one protobuf message holds, in a file that is mostly holes."""

from __future__ import annotations

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
            file.seek(i * each)
            file.write(np.random.default_rng(i).standard_normal(SIDE).astype("f4").tobytes())
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
