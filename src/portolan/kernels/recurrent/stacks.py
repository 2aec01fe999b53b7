"""Stacks of LSTM layers in a graph, and their kernel.

The kernel is written by hand (`lstm.c`): its layers carry arrays from step to step that are read as a whole, which the
kernels' language has no word for.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from portolan.core.carried import Argument, Carried
from portolan.core.extensions import domain
from portolan.core.target import Target
from portolan.kernels.candidates import lanes
from portolan.kernels.fusion.piece import Fresh, Piece
from portolan.kernels.fusion.spaces import Shape
from portolan.kernels.printers.c import function_name, prelude
from portolan.kernels.recurrent import body
from portolan.kernels.recurrent.weights import Weights, packed
from portolan.worker.session import Worker

if TYPE_CHECKING:
    import onnx

#: What stands for a free number of steps while a stack is raced.
_STEPS = 32
_MOST_LAYERS = 16
_USUAL: Mapping[str, Any] = {
    "direction": b"forward", "layout": 0, "input_forget": 0, "clip": 0.0,
    "activations": [b"Sigmoid", b"Tanh", b"Tanh"], "activation_alpha": [], "activation_beta": [],
}  # fmt: skip


@dataclass(frozen=True)
class Layer:
    """One LSTM node.

    Attributes:
        node: the node.
        bridge: nodes behind it that only reshape what it gives the next layer.
        result: what the next layer reads, or others.
        weights: names of its constants.
        packed: the same as the kernel reads them.
    """

    node: onnx.NodeProto
    bridge: tuple[onnx.NodeProto, ...]
    weights: tuple[str, ...]
    packed: Weights


@dataclass(frozen=True)
class Stack(Piece):
    """Layers that read each other's results, and nobody else does.

    Attributes:
        layers: from the first to the last.
        shapes: of the graph's tensors.
        last: the name of the last step, if it has readers (`Y_h`).
    """

    layers: tuple[Layer, ...]
    shapes: Mapping[str, Shape]
    last: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Of the operator: what it computes, and the order in which it reads weights, hashed."""
        sides = [array.shape for one in self.layers for array in one.packed.arrays()]
        return f"fused_{hashlib.sha256(repr(('lstm', self.layers[0].packed.hidden, sides)).encode()).hexdigest()[:12]}"

    @property
    def nodes(self) -> Sequence[onnx.NodeProto]:
        """What it replaces."""
        return [node for one in self.layers for node in (one.node, *one.bridge)]

    @property
    def inputs(self) -> Sequence[str]:
        """What it reads."""
        return [self.layers[0].node.input[0], *dict.fromkeys(name for one in self.layers for name in one.weights)]

    @property
    def outputs(self) -> Sequence[str]:
        """What it gives: every step of the last layer, and the last step alone where somebody reads that."""
        return [*self.nodes[-1].output[:1], *self.last]

    @property
    def sizes(self) -> Mapping[str, int]:
        """A sequence has many steps."""
        steps = self.shapes[self.inputs[0]][0]
        return {steps: _STEPS} if isinstance(steps, str) else {}

    def moved(self) -> float:
        """Every step reads the weights."""
        steps = self.shapes[self.inputs[0]][0]
        return float(
            (steps if isinstance(steps, int) else _STEPS) * sum(one.packed.recurrent.size for one in self.layers)
        )

    def operator(self) -> Carried:
        """What the operator takes and gives."""
        hidden, inputs = self.layers[0].packed.hidden, [Argument("x", "f32", ("t", "b", self.layers[0].packed.width))]
        for number, one in enumerate(self.layers):
            arrays = zip(("w", "r", "bias"), one.packed.arrays(), strict=True)
            inputs += [Argument(f"{name}{number}", "f32", array.shape) for name, array in arrays]
        name = self.name
        return Carried(
            domain(name), name, function_name(name), f"{name}.so", f"{name}.c", "", ("t", "b"), tuple(inputs),
            (Argument("y", "f32", ("t", 1, "b", hidden)),),
        )  # fmt: skip

    def code(self, target: Target, shapes: Mapping[str, Shape]) -> str:
        """The kernel in C."""
        first = self.layers[0].packed
        numbers = {
            "LANES": max(4, lanes(target)), "ENTRY": function_name(self.name),
            "LAYERS": len(self.layers), "INPUT": first.width, "HIDDEN": first.hidden,
        }  # fmt: skip
        head = [f"#define {name} {value}" for name, value in numbers.items()]
        return "\n".join((*head, prelude(), (Path(__file__).parent / "lstm.c").read_text(encoding="utf-8")))

    def check(self, path: Path, worker: Worker, target: Target, shapes: Mapping[str, Shape]) -> None:
        """There is no other oracle than the nodes."""

    def calls(self, graph: onnx.GraphProto, fresh: Fresh) -> list[onnx.NodeProto]:
        """The operator in the graph."""
        from onnx import helper, numpy_helper

        names = [self.inputs[0]]
        for one in self.layers:
            for name, array in zip(("w", "r", "bias"), one.packed.arrays(), strict=True):
                names.append(fresh(f"{one.node.output[0]}_{name}"))
                graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(array), names[-1]))
        every, *last = self.outputs
        made = [helper.make_node(self.name, names, [every], domain=domain(self.name))]
        if last:
            end = fresh(f"{every}_end")
            graph.initializer.append(helper.make_tensor(end, 7, [], [-1]))  # 7: int64
            made.append(helper.make_node("Gather", [every, end], last, axis=0))
        return made

    def function(self, imports: Sequence[onnx.OperatorSetIdProto]) -> onnx.FunctionProto:
        """Its body."""
        return body.function(self.name, [one.packed for one in self.layers], imports)


def stacks(graph: onnx.GraphProto, shapes: Mapping[str, Shape]) -> list[Stack]:
    """The stacks of a graph, each as high as it can be."""
    reader = _Reader(graph, shapes)
    alone = [one for node in graph.node if (one := reader.layer(node)) is not None]
    found: dict[str, list[Layer]] = {}  # by what the last layer gives
    for one in alone:
        source = one.node.input[0]
        below = found.get(source, [])
        if below and below[-1].packed.hidden == one.packed.hidden and len(below) < _MOST_LAYERS:
            del found[source]
        else:
            below = []
        bridge = reader.bridge(one.node)
        found[(bridge[-1] if bridge else one.node).output[0]] = [
            *below,
            Layer(one.node, bridge, one.weights, one.packed),
        ]
    return [Stack(_ended(layers), shapes, reader.last(layers[-1].node)) for layers in found.values()]


def _ended(layers: Sequence[Layer]) -> tuple[Layer, ...]:
    """The last layer gives what it gives: what reshapes it stays."""
    *below, last = layers
    return (*below, Layer(last.node, (), last.weights, last.packed))


class _Reader:
    """What is known of a graph."""

    def __init__(self, graph: onnx.GraphProto, shapes: Mapping[str, Shape]) -> None:
        from portolan.passes._surgery import captured

        self._shapes = shapes
        self._constants = {tensor.name: tensor for tensor in graph.initializer}
        self._users: dict[str, list[onnx.NodeProto | None]] = {}
        for node in graph.node:
            for name in node.input:
                self._users.setdefault(name, []).append(node)
            for name in captured(node):
                self._users.setdefault(name, []).append(None)
        for value in graph.output:
            self._users.setdefault(value.name, []).append(None)

    def layer(self, node: onnx.NodeProto) -> Layer | None:
        """The node as a layer; None where it is another operator, or more than the kernel can."""
        from portolan.passes._surgery import attribute, standard

        if node.op_type != "LSTM" or not standard(node):
            return None
        if any(_list_of(attribute(node, name, usual)) != _list_of(usual) for name, usual in _USUAL.items()):
            return None
        given = [*node.input, *[""] * (8 - len(node.input))]
        x, w, r, b, lengths, *begun, peepholes = given
        if lengths or peepholes or not node.output[0] or any(self._users.get(name) for name in node.output[2:]):
            return None
        if any(name and not self._zero(name) for name in begun) or x not in self._shapes or len(self._shapes[x]) != 3:
            return None
        names = tuple(name for name in (w, r, b) if name)
        arrays = [self._array(name) for name in names]
        there = [array for array in arrays if array is not None]
        if node.output[0] not in self._shapes or len(there) < len(arrays) or not _fitting(*there):
            return None
        return Layer(node, (), names, packed(*there))

    def bridge(self, node: onnx.NodeProto) -> tuple[onnx.NodeProto, ...]:
        """The nodes that take the axis of directions out of what a layer gives, if another LSTM reads it alone."""
        steps, _, batch, hidden = self._shapes[node.output[0]]
        if self.last(node):
            return ()
        passed: list[onnx.NodeProto] = []
        name = node.output[0]
        while len(users := self._users.get(name, [])) == 1 and (user := users[0]) is not None:
            if user.op_type == "LSTM":
                return tuple(passed) if user.input[0] == name else ()
            if user.input[0] != name or not self._same(user, passed, (steps, batch, hidden)):
                return ()
            passed.append(user)
            name = user.output[0]
        return ()

    def last(self, node: onnx.NodeProto) -> tuple[str, ...]:
        """The name of the last step alone, if it has readers."""
        return tuple(name for name in node.output[1:2] if name and self._users.get(name))

    def _same(self, node: onnx.NodeProto, passed: Sequence[onnx.NodeProto], shape: Shape) -> bool:
        """Whether it leaves numbers in their order, and gives that shape or leads to it."""
        from portolan.passes._surgery import attribute

        if node.op_type == "Transpose":  # the axis of directions is 1
            return not passed and list(attribute(node, "perm", [])) == [0, 2, 1, 3]
        return node.op_type in ("Reshape", "Squeeze") and self._shapes.get(node.output[0]) == shape

    def _array(self, name: str) -> np.ndarray | None:
        from onnx import TensorProto, numpy_helper

        tensor = self._constants.get(name)
        if tensor is None or tensor.data_type != TensorProto.FLOAT:
            return None
        array: np.ndarray = numpy_helper.to_array(tensor)
        return array

    def _zero(self, name: str) -> bool:
        array = self._array(name)
        return array is not None and not array.any()


def _fitting(w: np.ndarray, r: np.ndarray, b: np.ndarray | None = None) -> bool:
    """Whether weights are those of one layer in one direction."""
    if w.ndim != 3 or r.ndim != 3 or not w.size or not r.size:
        return False
    hidden = r.shape[2]
    fits = w.shape[:2] == (1, 4 * hidden) and r.shape[:2] == (1, 4 * hidden)
    return fits and (b is None or b.shape == (1, 8 * hidden))


def _list_of(value: Any) -> list[Any]:
    """An attribute's value as a list."""
    return list(value) if isinstance(value, (list, tuple)) else [value]
