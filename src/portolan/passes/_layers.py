"""The layers that `decompose` can take apart, and the nodes that stand in for them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from portolan.passes._surgery import Constants, Shape, attribute, users, weighted

if TYPE_CHECKING:
    import numpy as np
    import onnx

PRODUCTS = ("Gemm", "MatMul")


@dataclass(frozen=True, eq=False)
class Layer:
    """A weight and the nodes that use it; more than one where they share it.

    Attributes:
        name: of the weight.
        nodes: all its users, of one kind and with equal attributes.
        weight: a product's as [inputs, outputs], with a Gemm's alpha in it; a convolution's as stored.
    """

    name: str
    nodes: tuple[onnx.NodeProto, ...]
    weight: np.ndarray

    @property
    def product(self) -> bool:
        """Whether it is a dense layer, not a convolution."""
        return self.nodes[0].op_type in PRODUCTS

    @property
    def groups(self) -> int:
        """A convolution's groups."""
        return int(attribute(self.nodes[0], "group", 1))

    @property
    def inputs(self) -> tuple[str, ...]:
        """What its nodes read."""
        return tuple(node.input[0] for node in self.nodes)


def layers(proto: onnx.ModelProto, constants: Constants, operators: Sequence[str]) -> Iterator[Layer]:
    """The layers of these kinds whose weight nothing else uses, in the order of the graph.

    A weight that is also an output, a lookup table, or used in two ways stays whole: taken apart, it would be there
    twice.
    """
    found: dict[str, list[onnx.NodeProto]] = {}
    for node in weighted(proto, constants, operators):
        found.setdefault(node.input[1], []).append(node)
    readers = users(proto)
    for name, nodes in found.items():
        alike = {
            (n.op_type, *(a.SerializeToString() for a in sorted(n.attribute, key=lambda a: a.name))) for n in nodes
        }
        if len(alike) > 1 or any(place != 1 for _, place in readers[name]):
            continue
        weight = _weight(nodes[0], constants)
        if weight is not None:
            yield Layer(name, tuple(nodes), weight)


def _weight(node: onnx.NodeProto, constants: Constants) -> np.ndarray | None:
    shape = constants.shape(node.input[1])
    if 0 in shape:
        return None
    if node.op_type not in PRODUCTS:
        return constants[node.input[1]]
    if len(shape) != 2 or attribute(node, "transA", 0):
        return None
    w = constants[node.input[1]]
    if node.op_type == "MatMul":
        return w
    scaled: np.ndarray = (w.T if attribute(node, "transB", 0) else w) * w.dtype.type(attribute(node, "alpha", 1.0))
    return scaled


class Builder:
    """Makes the nodes that replace a layer's; equal constants are stored once for all of its users.

    Args:
        constants: of the graph that is changed.
        taken: names of tensors that exist.
        sizes: of its tensors, where known.
    """

    def __init__(self, constants: Constants, taken: set[str], sizes: dict[str, Shape]) -> None:
        self.constants, self.taken, self.sizes = constants, taken, sizes

    def products(self, layer: Layer, left: np.ndarray, right: np.ndarray) -> dict[str, list[onnx.NodeProto]]:
        """X w as (x a) b; a Gemm keeps its bias behind the second."""
        a, b = self._store(layer, "a", left), self._store(layer, "b", right)
        found = {}
        for node in layer.nodes:
            middle = self.name(f"{node.output[0]}.low")
            extra = {"beta": attribute(node, "beta", 1.0)} if node.op_type == "Gemm" else {}
            found[node.output[0]] = [
                self._node("MatMul", [node.input[0], a], middle, f"{node.name}/a"),
                self._node(node.op_type, [middle, b, *node.input[2:]], node.output[0], node.name, **extra),
            ]
        return found

    def chain(
        self, layer: Layer, kernels: Sequence[tuple[str, np.ndarray, dict[str, Any]]]
    ) -> dict[str, list[onnx.NodeProto]]:
        """A convolution as several, one after the other: (suffix, kernel, attributes) each; the bias goes last."""
        stored = [self._store(layer, suffix, kernel) for suffix, kernel, _ in kernels]
        found = {}
        for node in layer.nodes:
            nodes, value = [], node.input[0]
            for i, (suffix, kernel, attributes) in enumerate(kernels):
                last = i == len(kernels) - 1
                output = node.output[0] if last else self.name(f"{node.output[0]}.{suffix}")
                inputs = [value, stored[i], *(node.input[2:] if last else [])]
                name = node.name if last else f"{node.name}/{suffix}"
                nodes.append(self._node("Conv", inputs, output, name, kernel_shape=kernel.shape[2:], **attributes))
                value = output
            found[node.output[0]] = nodes
        return found

    def train(self, layer: Layer, cores: Sequence[np.ndarray]) -> dict[str, list[onnx.NodeProto]]:
        """A dense layer as one small product per core, last first; see `_tensor_train`."""
        return {node.output[0]: self._train(layer, node, cores) for node in layer.nodes}

    def _train(self, layer: Layer, node: onnx.NodeProto, cores: Sequence[np.ndarray]) -> list[onnx.NodeProto]:
        import numpy as np

        nodes: list[onnx.NodeProto] = []
        value = node.input[0]

        def step(operator: str, *constants: str, **attributes: Any) -> None:
            nonlocal value
            output = self.name(f"{node.output[0]}.{len(nodes)}")
            nodes.append(self._node(operator, [value, *constants], output, f"{node.name}/{len(nodes)}", **attributes))
            value = output

        def reshape(*sizes: int) -> None:
            step("Reshape", self._store(layer, "shape", np.array(sizes, np.int64)))

        for j in reversed(range(len(cores))):
            before, k, n, after = cores[j].shape
            rows = int(np.prod([core.shape[1] for core in cores[:j]], dtype=int))
            reshape(-1, k * after)
            # [k, after, n, before]: a row's last two indices are summed, the next core's rank comes out last.
            step(
                "MatMul", self._store(layer, f"core{j}", cores[j].transpose(1, 3, 2, 0).reshape(k * after, n * before))
            )
            if j:
                reshape(-1, rows, n, before)
                step("Transpose", perm=[0, 2, 1, 3])
        return nodes + self._finish(layer, node, value, len(nodes))

    def _finish(self, layer: Layer, node: onnx.NodeProto, value: str, count: int) -> list[onnx.NodeProto]:
        """The last product's rows back in the shape of the layer's output, and a Gemm's bias."""
        import numpy as np

        width, output = layer.weight.shape[1], node.output[0]
        free = self.name(f"{output}.flat") if node.op_type == "Gemm" and len(node.input) > 2 else output
        sizes = self.sizes.get(node.input[0])
        leading = None if sizes is None else [*sizes[:-1]]
        nodes = []
        if leading is not None and leading.count(None) <= 1:
            known = np.array([-1 if size is None else size for size in leading] + [width], np.int64)
            shape = self._store(layer, "shape", known)
        else:
            shape = self.name(f"{output}.shape")
            whole, rest = self.name(f"{output}.shape.whole"), self.name(f"{output}.shape.rest")
            start, stop = (self._store(layer, "index", np.array([i], np.int64)) for i in (0, -1))
            last = self._store(layer, "width", np.array([width], np.int64))
            nodes += [
                self._node("Shape", [node.input[0]], whole, f"{node.name}/shape"),
                self._node("Slice", [whole, start, stop], rest, f"{node.name}/leading"),
                self._node("Concat", [rest, last], shape, f"{node.name}/sizes", axis=0),
            ]
        nodes.append(self._node("Reshape", [value, shape], free, f"{node.name}/{count}"))
        if free != output:
            name = node.input[2]
            beta = attribute(node, "beta", 1.0)
            if beta != 1.0:
                name = self._store(layer, "beta", np.array(beta, layer.weight.dtype))
                scaled = self.name(f"{output}.bias")
                nodes.append(self._node("Mul", [node.input[2], name], scaled, f"{node.name}/beta"))
                name = scaled
            nodes.append(self._node("Add", [free, name], output, node.name))
        return nodes

    def _store(self, layer: Layer, suffix: str, array: np.ndarray) -> str:
        """A constant of the layer; floats get the weight's type. Users that share a weight share what it became."""
        import numpy as np

        kind = array.dtype if array.dtype == np.int64 else layer.weight.dtype
        name = f"{layer.name}.{suffix}"
        while name in self.constants:
            old = self.constants[name]
            if old.dtype == kind and old.shape == array.shape and (old == array.astype(kind)).all():
                return name
            name += "_"
        return self.constants.add(name, array.astype(kind))

    def name(self, wanted: str) -> str:
        """A name for a tensor that no other has."""
        while wanted in self.taken or wanted in self.constants:
            wanted += "_"
        self.taken.add(wanted)
        return wanted

    @staticmethod
    def _node(operator: str, inputs: Sequence[str], output: str, name: str, **attributes: Any) -> onnx.NodeProto:
        import onnx

        return onnx.helper.make_node(operator, list(inputs), [output], name=name, **attributes)
