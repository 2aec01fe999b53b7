"""A front end in one file: linear models in JSON, `{"weights": [[...], ...], "bias": [...]}`."""

from __future__ import annotations

import json
from pathlib import Path

from portolan.core.frontend import FrontEnd, Shapes
from portolan.core.graph import freeze_shapes, load_model
from portolan.core.model import Model
from portolan.errors import ModelError, UsageError


class Linear(FrontEnd):
    """`NAME.linear.json`, with a row of weights for each output."""

    name = "linear"
    forms = "a `.linear.json` file"

    def accepts(self, source: object) -> bool:
        """By the ending alone: nothing is opened here."""
        return isinstance(source, (str, Path)) and str(source).endswith(".linear.json")

    def load(self, source: object, out: Path, shapes: Shapes | None = None, name: str | None = None) -> Model:
        """See FrontEnd."""
        import numpy as np
        import onnx
        from onnx import helper, numpy_helper

        path = Path(str(source))
        if not path.is_file():
            raise UsageError(f"there is no file `{path}`", hint=f"give {self.forms}")
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            weights, bias = (np.array(data[key], dtype=np.float32) for key in ("weights", "bias"))
            outputs, inputs = weights.shape
            bias.reshape(outputs)
        except (ValueError, KeyError, TypeError) as error:
            hint = 'write {"weights": [[...], ...], "bias": [...]}'
            raise ModelError(f"`{path}` is not a linear model", hint=hint, where=str(path)) from error
        kind = onnx.TensorProto.FLOAT
        graph = helper.make_graph(
            [helper.make_node("Gemm", ["x", "weights", "bias"], ["y"], name="linear", transB=1)],
            "linear",
            [helper.make_tensor_value_info("x", kind, ["batch", inputs])],
            [helper.make_tensor_value_info("y", kind, ["batch", outputs])],
            [numpy_helper.from_array(weights, "weights"), numpy_helper.from_array(bias, "bias")],
        )
        out.mkdir(parents=True, exist_ok=True)
        made = out / "model.onnx"
        proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
        made.write_bytes(proto.SerializeToString(deterministic=True))
        model = load_model(made, name=name or path.name.removesuffix(".linear.json"), format="linear")
        return freeze_shapes(model, shapes, out) if shapes else model


linear = Linear()
