"""What the importer and the backends that read graphs by it refuse, word for word.

After a wanted change: `PORTOLAN_UPDATE_GOLDEN=1 pytest tests/golden/test_importer_errors.py`, and read the diff.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from portolan.backends.torch import torch
from portolan.backends.xla import xla
from portolan.core.graph import load_model
from portolan.core.model import Model
from portolan.errors import UnsupportedOperator
from portolan.testing.models import corrupt, sized_by_an_input, this_machine, unsupported
from support import errors

pytestmark = pytest.mark.torch
GOLDEN = Path(__file__).with_name("importer_errors.txt")
FLOATS, STRINGS = TensorProto.FLOAT, TensorProto.STRING


def written(folder: Path, nodes: Sequence[Any], kind: int = FLOATS, opset: int = 20, **inputs: Any) -> Model:
    sides = [[helper.make_tensor_value_info(n, kind, [2]) for n in names] for names in (["x"], ["y"])]
    graph = helper.make_graph(list(nodes), "g", *sides, **inputs)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)
    (folder / "m.onnx").write_bytes(model.SerializeToString())
    return load_model(folder / "m.onnx")


def node(operator: str, inputs: str = "x", **attributes: Any) -> Any:
    return helper.make_node(operator, inputs.split(), ["y"], **attributes)


def eager(model: Model) -> None:
    executable = torch.compile(model, this_machine(), compiler="eager", threads=1)
    executable.run({"x": np.ones(2, np.float32)})


def sequence(folder: Path) -> None:
    value = helper.make_tensor_sequence_value_info("x", FLOATS, [2])
    output = helper.make_tensor_value_info("y", TensorProto.INT64, [])
    graph = helper.make_graph([node("SequenceLength")], "g", [value], [output])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    (folder / "m.onnx").write_bytes(model.SerializeToString())
    load_model(folder / "m.onnx")


def refused(backend: Any, model: Model) -> None:
    raise UnsupportedOperator(backend.refuse(model, this_machine()))


def branches(folder: Path) -> None:
    """Two ways of two sizes, and which is taken is known only as the model runs: Inductor cannot."""
    ways = [
        helper.make_graph([helper.make_node(name, inputs, ["r"], **more)], name, [],
                          [helper.make_tensor_value_info("r", FLOATS, None)])
        for name, inputs, more in (("Identity", ["x"], {}), ("Concat", ["x", "x"], {"axis": 0}))
    ]  # fmt: skip
    nodes = [
        helper.make_node("ReduceMax", ["x"], ["top"], keepdims=0),
        helper.make_node("Cast", ["top"], ["c"], to=TensorProto.BOOL),
        helper.make_node("If", ["c"], ["z"], then_branch=ways[0], else_branch=ways[1]),
        helper.make_node("ReduceMax", ["z"], ["t"], keepdims=0),
        helper.make_node("Expand", ["t", "two"], ["y"]),
    ]
    two = helper.make_tensor("two", TensorProto.INT64, [1], [2])
    torch.compile(written(folder, nodes, initializer=[two]), this_machine(), threads=1)


WRONG: dict[str, Callable[[Path], Any]] = {
    "an operator of nobody": lambda folder: torch.compile(unsupported(folder), this_machine()),
    "an operator of strings": lambda folder: eager(written(folder, [node("StringNormalizer")], STRINGS)),
    "tensors of strings": lambda folder: eager(written(folder, [node("Identity")], STRINGS)),
    "tensors of strings, asked before": lambda folder: refused(xla, written(folder, [node("Identity")], STRINGS)),
    "an operator of strings, asked before": lambda folder: refused(
        xla, written(folder, [node("StringNormalizer")], STRINGS)
    ),
    "a sequence": sequence,
    "a file cut short": lambda folder: eager(corrupt(folder)),
    "sizes that an input holds": lambda folder: torch.compile(sized_by_an_input(folder), this_machine()),
    "branches of two sizes": branches,
    "eager in bf16": lambda folder: torch.compile(
        sized_by_an_input(folder), this_machine(), compiler="eager", precision="bf16"
    ),
    "an old operator set": lambda folder: eager(written(folder, [node("Relu")], opset=6)),
    "a recurrent layer with a clip": lambda folder: recurrent(folder),
}


def recurrent(folder: Path) -> None:
    shapes = {"x": [3, 1, 2], "w": [1, 2, 2], "r": [1, 2, 2]}
    sides = [helper.make_tensor_value_info(n, FLOATS, s) for n, s in shapes.items()]
    made = helper.make_node("RNN", ["x", "w", "r"], ["y"], hidden_size=2, clip=1.0)
    graph = helper.make_graph([made], "g", sides, [helper.make_tensor_value_info("y", FLOATS, [3, 1, 1, 2])])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)], ir_version=9)
    (folder / "m.onnx").write_bytes(model.SerializeToString())
    executable = torch.compile(load_model(folder / "m.onnx"), this_machine(), compiler="eager", threads=1)
    executable.run({name: np.ones(shape, np.float32) for name, shape in shapes.items()})


def told(name: str, folder: Path) -> str:
    return errors.told(name, lambda: WRONG[name](folder), folder)


def test_every_error_word_for_word(tmp_path: Path) -> None:
    said = []
    for i, name in enumerate(WRONG):
        (tmp_path / str(i)).mkdir()
        said.append(told(name, tmp_path / str(i)))
    text = "\n".join(said)
    if os.environ.get("PORTOLAN_UPDATE_GOLDEN"):
        GOLDEN.write_text(text, encoding="utf-8")
    assert text == GOLDEN.read_text(encoding="utf-8")
