"""Fused models that show who has answered."""

from __future__ import annotations

from pathlib import Path

import onnx


def misled(path: Path) -> None:
    """Bodies that are wrong on purpose show who has answered."""
    proto = onnx.load(path)
    for function in proto.functions:
        for name in function.output:
            made = next(n for n in function.node if name in n.output)
            made.output[list(made.output).index(name)] = f"{name}_right"
            function.node.append(onnx.helper.make_node("Neg", [f"{name}_right"], [name]))
    onnx.save(proto, path)
