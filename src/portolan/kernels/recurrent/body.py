"""The body of a stack's operator: ONNX's own LSTM, on weights turned back from the kernel's order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from portolan.core.extensions import domain
from portolan.kernels.recurrent.weights import Weights

if TYPE_CHECKING:
    import onnx


def function(name: str, layers: Sequence[Weights], imports: Sequence[onnx.OperatorSetIdProto]) -> onnx.FunctionProto:
    """What the operator computes, in operators that every runtime has.

    Args:
        name: of the operator.
        layers: from the first to the last; only their sizes are used.
        imports: operator sets of the model.
    """
    from onnx import helper

    inputs, made = ["x"], _Nodes()
    source = "x"
    for number, layer in enumerate(layers):
        given = [f"w{number}", f"r{number}", f"bias{number}"]
        inputs += given
        source = _layer(made, source, given, layer, number, last=number == len(layers) - 1)
    return helper.make_function(domain(name), name, inputs, [source], made.nodes, list(imports))


class _Nodes:
    """Nodes in the making, with names of their own for what is between them."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []

    def add(self, operator: str, *inputs: str, **attributes: object) -> str:
        """A node; the name of what it gives."""
        from onnx import helper

        self.nodes.append(helper.make_node(operator, inputs, [f"t{len(self.nodes)}"], **attributes))
        return str(self.nodes[-1].output[0])

    def sizes(self, *numbers: int) -> str:
        """A constant list of whole numbers."""
        return self.add("Constant", value_ints=list(numbers))


def _layer(made: _Nodes, source: str, given: Sequence[str], layer: Weights, number: int, *, last: bool) -> str:
    w, r, bias = given
    hidden, padded = layer.hidden, layer.bias.size // 4

    def gates(array: str, width: int) -> str:
        """[1, 4 hidden, width], of what can be reshaped to [4, padded, width]."""
        whole = made.add("Reshape", array, made.sizes(4, padded, width))
        cut = made.add("Slice", whole, made.sizes(0), made.sizes(hidden), made.sizes(1))
        return made.add("Reshape", cut, made.sizes(1, 4 * hidden, width))

    entering = gates(made.add("Transpose", w, perm=[0, 2, 1]), layer.width)
    recurrent = gates(made.add("Transpose", r, perm=[2, 0, 3, 1]), hidden)
    both = made.add("Reshape", gates(bias, 1), made.sizes(1, 4 * hidden))
    nothing = made.add("Sub", both, both)
    biases = made.add("Concat", both, nothing, axis=1)
    result = made.add("LSTM", source, entering, recurrent, biases, hidden_size=hidden)
    return result if last else made.add("Reshape", result, made.sizes(0, -1, hidden))
