"""What the servers are measured with: small models, their tensors, and the bodies of requests in both encodings."""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import portolan

EXAMPLES = Path(__file__).parents[2] / "examples"
TOKENS = 128
_WORDS = {"float32": "FP32", "int64": "INT64"}


@dataclass(frozen=True)
class Workload:
    """A model, one request's inputs, and what it is served with.

    Attributes:
        name: of the model.
        path: of the ONNX file, its first dimension free.
        inputs: one row per input.
        serving: the recipe's serving table.
    """

    name: str
    path: Path
    inputs: dict[str, np.ndarray]
    serving: dict[str, object]

    def body(self, binary: bool, timeout_us: int | None = None) -> tuple[bytes, dict[str, str]]:
        """One request of the Open Inference Protocol, and its headers."""
        parameters: dict[str, object] = {} if timeout_us is None else {"timeout": timeout_us}
        listed, raw = [], b""
        for name, array in self.inputs.items():
            entry: dict[str, object] = {"name": name, "shape": list(array.shape), "datatype": _WORDS[array.dtype.name]}
            if binary:
                entry["parameters"] = {"binary_data_size": array.nbytes}
                raw += array.tobytes()
            else:
                entry["data"] = array.ravel().tolist()
            listed.append(entry)
        if binary:
            parameters["binary_data_output"] = True
        request = {"inputs": listed} | ({"parameters": parameters} if parameters else {})
        head = json.dumps(request, separators=(",", ":")).encode()
        if not binary:
            return head, {"Content-Type": "application/json"}
        return head + raw, {
            "Content-Type": "application/octet-stream",
            "Inference-Header-Content-Length": str(len(head)),
        }


def make(name: str, folder: Path) -> Workload:
    """The workload of that name, its model file in `folder` if it is not there yet."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.onnx"
    rng = np.random.default_rng(0)
    if name == "minilm":
        if not path.is_file():
            shapes: dict[str, tuple[int | str, ...]] = dict.fromkeys(("input_ids", "attention_mask"), ("batch", TOKENS))
            portolan.load(f"{EXAMPLES / 'minilm.py'}:minilm", shapes=shapes, out=folder, name=name)
        ids, mask = rng.integers(1000, 20000, (1, TOKENS)), np.ones((1, TOKENS), np.int64)
        return Workload(name, path, {"input_ids": ids, "attention_mask": mask}, {"max_batch": 16})
    graph, row, most = {
        "identity": (_identity, (16,), 32),
        "mlp": (_mlp, (256,), 32),
        "image": (_image, (224, 224, 3), 1),
    }[name]
    if not path.is_file():
        import onnx

        onnx.save(graph(), path)
    return Workload(name, path, {"x": rng.random((1, *row), dtype=np.float32)}, {"max_batch": most})


def _identity():  # type: ignore[no-untyped-def]
    from onnx import helper

    return _graph([helper.make_node("Identity", ["x"], ["y"])], (16,), (16,), [])


def _mlp():  # type: ignore[no-untyped-def]
    from onnx import helper, numpy_helper

    rng, nodes, weights, last = np.random.default_rng(1), [], [], "x"
    sizes = (256, 1024, 1024, 256)
    for i, (rows, columns) in enumerate(itertools.pairwise(sizes)):
        weights += [
            numpy_helper.from_array((rng.standard_normal((rows, columns)) / rows**0.5).astype(np.float32), f"w{i}"),
            numpy_helper.from_array(np.zeros(columns, np.float32), f"b{i}"),
        ]
        final = i == len(sizes) - 2
        nodes.append(helper.make_node("Gemm", [last, f"w{i}", f"b{i}"], ["y" if final else f"g{i}"]))
        if not final:
            nodes.append(helper.make_node("Relu", [f"g{i}"], [f"r{i}"]))
        last = f"r{i}"
    return _graph(nodes, (256,), (256,), weights)


def _image():  # type: ignore[no-untyped-def]
    """Little arithmetic over a whole image, so that what carries it there shows."""
    from onnx import helper, numpy_helper

    axes = numpy_helper.from_array(np.array([1, 2], np.int64), "axes")
    return _graph([helper.make_node("ReduceMean", ["x", "axes"], ["y"], keepdims=0)], (224, 224, 3), (3,), [axes])


def _graph(nodes, row, out, initializers):  # type: ignore[no-untyped-def]
    from onnx import TensorProto, helper

    graph = helper.make_graph(
        nodes,
        "workload",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", *row])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", *out])],
        initializers,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
