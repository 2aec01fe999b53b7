"""Static int8: which activations are quantized where, and the graph with QuantizeLinear and DequantizeLinear in it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from portolan.passes import _ranges
from portolan.passes._products import Graph, Layer
from portolan.passes._steps import Kind, Stored, store

if TYPE_CHECKING:
    import numpy as np
    import onnx

Reader = tuple[str, int]


@dataclass(frozen=True)
class Plan:
    """What is to become of a graph.

    Attributes:
        layers: the products whose activations are 8-bit.
        stored: those whose weights only are, and which compute in float.
        ranges: of each activation that is quantized.
        scales: by what the channels of an activation are divided first, see `_smooth`.
        more: further tensors to quantize, for all who read them.
        signed: tensors whose steps are signed and even around zero, if they have negative values.
        kind: which whole numbers weights are.
        per_channel: a scale per output channel.
        tables: whether tables of embeddings are stored in 8 bits.
    """

    layers: tuple[Layer, ...]
    stored: tuple[Layer, ...]
    ranges: Mapping[str, _ranges.Range]
    scales: Mapping[str, np.ndarray]
    more: tuple[str, ...] = ()
    signed: frozenset[str] = frozenset()
    kind: Kind = "s8"
    per_channel: bool = True
    tables: bool = True


def places(graph: Graph, layers: Iterable[Layer], more: Iterable[str] = ()) -> dict[str, set[Reader]]:
    """Every tensor to quantize, and who reads it in 8 bits."""
    found: dict[str, set[Reader]] = {}
    for layer in layers:
        for tensor, path in zip(layer.inputs, layer.paths, strict=True):
            found.setdefault(tensor, set()).add(path)
    for tensor in more:
        found.setdefault(tensor, set()).update((node.name, i) for node, i in graph.readers.get(tensor, []))
    return found


@dataclass
class Builder:
    """Builds quantized graphs from one float graph; weights that several of them share are rounded once."""

    graph: Graph
    _stored: dict[tuple[object, ...], Stored] = field(default_factory=dict)

    def build(self, plan: Plan) -> onnx.ModelProto:
        """The graph that `plan` describes. The float graph stays as it is."""
        return _Building(self, plan).run()

    def weight(self, layer: Layer, plan: Plan, scale: np.ndarray | None, least: np.ndarray | None) -> Stored:
        """The weight of `layer` in 8 bits, its input channels multiplied with `scale`."""
        import onnx

        axis = layer.axis if plan.per_channel else None
        marks = tuple(None if a is None else a.tobytes() for a in (scale, least))
        key = (layer.weight, axis, plan.kind, *marks)
        if key not in self._stored:
            values = onnx.numpy_helper.to_array(self.graph.constants[str(layer.weight)])
            if scale is not None:
                values = values * (scale[:, None] if layer.axis == 1 else scale[None])
            self._stored[key] = store(values, axis, plan.kind, least)
        return self._stored[key]


class _Building:
    """One graph in the making."""

    def __init__(self, builder: Builder, plan: Plan) -> None:
        self.builder, self.graph, self.plan = builder, builder.graph, plan
        self.readers = places(self.graph, plan.layers, plan.more)
        self.layers = {layer.name: layer for layer in (*plan.layers, *plan.stored)}
        self.active = {layer.name for layer in plan.layers}
        self.tables = {node.name for node in self.graph.tables()} if plan.tables else set()
        self.nodes: list[onnx.NodeProto] = []
        self.tensors: dict[str, onnx.TensorProto] = {}
        self.taken = {*self.graph.nodes, *self.graph.constants, *self.graph.makers, *self.graph.readers}
        self.renamed: dict[Reader, str] = {}
        self.done: dict[object, str] = {}

    def run(self) -> onnx.ModelProto:
        import onnx

        proto = onnx.ModelProto()
        source = self.graph.proto
        for entry in source.opset_import:
            proto.opset_import.add().CopyFrom(entry)
        proto.ir_version, proto.graph.name = source.ir_version, source.graph.name or "graph"
        for tensor in [value.name for value in source.graph.input]:
            self._quantize(tensor)
        for node in source.graph.node:
            self._emit(node)
        proto.graph.node.extend(self.nodes)
        proto.graph.input.extend(source.graph.input)
        proto.graph.output.extend(source.graph.output)
        self._keep(proto)
        return proto

    def _keep(self, proto: onnx.ModelProto) -> None:
        """Constants that something still needs, old ones in their order and then the new ones."""
        from portolan.core import protos

        used = {name for node in protos.walk(self.nodes) for name in node.input} | self.graph.outputs
        kept = [t for name, t in self.graph.constants.items() if name in used]
        proto.graph.initializer.extend([*kept, *(t for name, t in self.tensors.items() if name in used)])

    # Nodes -----------------------------------------------------------------------------------------------------

    def _emit(self, node: onnx.NodeProto) -> None:
        import onnx

        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        for i in range(len(copy.input)):
            copy.input[i] = self.renamed.get((node.name, i), copy.input[i])
        if node.name in self.tables:
            self._lookup(copy)
        else:
            layer = self.layers.get(node.name)
            if layer is not None and layer.weight is not None:
                self._weigh(copy, layer)
            self._spread(copy)
            scale = self._foldable(node)
            if scale is not None:
                self._fold(copy, scale)
            self.nodes.append(copy)
        for tensor in node.output:
            self._quantize(tensor)

    def _weigh(self, node: onnx.NodeProto, layer: Layer) -> None:
        """Gives a product its 8-bit weight, and a Gemm its bias in the sums' own steps.

        Runtimes turn the biases of convolutions into such steps themselves: in the file they stay half as large.
        """
        import numpy as np
        import onnx

        scale, step, bias, least = None, None, None, None
        if layer.name in self.active:
            scale = self.plan.scales.get(layer.inputs[0])
            step = float(self._steps(layer.inputs[0])[0])
        if layer.bias is not None and step is not None:
            bias = onnx.numpy_helper.to_array(self.graph.constants[layer.bias])
            if bias.shape != (self.graph.constants[str(layer.weight)].dims[layer.axis],):
                bias = None
        if bias is not None:
            least = np.abs(bias) / np.float32(step) / 2**30
            least = least if self.plan.per_channel else least.max(keepdims=True)
        stored = self.builder.weight(layer, self.plan, scale, least)
        convolves = node.op_type == "Conv"
        node.input[1] = self._constant(f"{layer.weight}", stored, bare=convolves)
        if bias is not None and step is not None and not convolves:
            sums = (np.float32(step) * stored.scale).astype("f4")
            sums = np.where(sums >= np.finfo("f4").tiny, sums, np.finfo("f4").tiny).astype("f4")
            values = np.clip(np.round(bias.astype("f8") / sums), -(2**31) + 1, 2**31 - 1).astype("i4")
            axis = 0 if len(stored.scale) > 1 else None
            node.input[2] = self._constant(f"{layer.bias}", Stored(values, sums, 0, axis), bare=True)

    def _spread(self, node: onnx.NodeProto) -> None:
        """Gives a bias behind an 8-bit product a second axis: ONNX Runtime would make a float Gemm of the two."""
        import onnx

        if node.op_type != "Add":
            return
        makers = [self.graph.makers.get(name) for name in node.input]
        if not any(maker is not None and maker.name in self.active for maker in makers):
            return
        for i, name in enumerate(node.input):
            tensor = self.graph.constants.get(name)
            if tensor is None or len(tensor.dims) != 1:
                continue
            key = ("bias", name)
            if key not in self.done:
                self.done[key] = self._new(f"{name}/row", onnx.numpy_helper.to_array(tensor)[None])
            node.input[i] = self.done[key]

    def _lookup(self, node: onnx.NodeProto) -> None:
        """Rows of an 8-bit table, each with a scale of its own: only those looked up are ever turned into floats."""
        import onnx

        name, ids, output = node.input[0], node.input[1], node.output[0]
        table = onnx.numpy_helper.to_array(self.graph.constants[name])
        key = ("table", name)
        if key not in self.done:
            stored = store(table, 0, "s8")
            self.done[key] = self._new(f"{name}/int8", stored.values)
            self.done[(*key, "scale")] = self._new(f"{name}/scale", stored.scale[:, None])
        kind = onnx.TensorProto.FLOAT
        rows, cast, scale = (self._fresh(f"{output}/{part}") for part in ("rows", "float", "scale"))
        self._node("Gather", [self.done[key], ids], rows, axis=0)
        self._node("Cast", [rows], cast, to=kind)
        self._node("Gather", [self.done[(*key, "scale")], ids], scale, axis=0)
        self._node("Mul", [cast, scale], output)

    def _quantize(self, tensor: str) -> None:
        """Puts the 8-bit version of a tensor behind it, and hands it to those who want it."""
        readers = self.readers.get(tensor)
        if not readers:
            return
        source, scale = tensor, self.plan.scales.get(tensor)
        maker = self.graph.makers.get(tensor)
        if scale is not None and (maker is None or self._foldable(maker) is None):
            source = self._fresh(f"{tensor}/smooth")
            self._node("Mul", [tensor, self._new(f"{tensor}/migration", 1 / scale)], source)
        step, zero = self._range(tensor)
        steps, floats = self._fresh(f"{tensor}/uint8"), self._fresh(f"{tensor}/steps")
        self._node("QuantizeLinear", [source, step, zero], steps)
        self._node("DequantizeLinear", [steps, step, zero], floats)
        self.renamed.update(dict.fromkeys(readers, floats))

    def _range(self, tensor: str) -> tuple[str, str]:
        step, zero = self._steps(tensor)
        return self._new(f"{tensor}/step", step), self._new(f"{tensor}/zero", zero)

    def _steps(self, tensor: str) -> tuple[np.ndarray, np.ndarray]:
        """Scale and zero point of an activation; signed steps lie evenly around zero."""
        import numpy as np

        lo, hi = self.plan.ranges[tensor]
        if tensor in self.plan.signed and lo < 0:
            return np.array(_ranges.steps(0.0, max(-lo, hi), 127)[0], "f4"), np.array(0, "i1")
        scale, zero = _ranges.steps(lo, hi)
        return np.array(scale, "f4"), np.array(zero, "u1")

    def _foldable(self, node: onnx.NodeProto) -> np.ndarray | None:
        """The migration that the normalization `node` can take over: nobody else reads what it gives."""
        if not folds(self.graph, node) or self.readers.get(node.output[0]) is None:
            return None
        everyone = {(reader.name, i) for reader, i in self.graph.readers.get(node.output[0], [])}
        alone = everyone == self.readers[node.output[0]]
        return self.plan.scales.get(node.output[0]) if alone else None

    def _fold(self, node: onnx.NodeProto, scale: np.ndarray) -> None:
        import onnx

        for i in range(1, len(node.input)):
            old = onnx.numpy_helper.to_array(self.graph.constants[node.input[i]])
            node.input[i] = self._new(f"{node.input[i]}/smooth", (old / scale).astype("f4"))

    # Names and constants ---------------------------------------------------------------------------------------

    def _node(self, operator: str, inputs: list[str], output: str, **attributes: object) -> None:
        import onnx

        name = self._fresh(f"{output}/{operator}")
        self.nodes.append(onnx.helper.make_node(operator, inputs, [output], name=name, **attributes))

    def _constant(self, name: str, stored: Stored, *, bare: bool) -> str:
        """The output of a DequantizeLinear over a stored constant; the same one for the same constant.

        Zero points of zero may be left out. ONNX Runtime takes Gemm and MatMul for integers only with those of their
        weights (`bare` is False).
        """
        import numpy as np

        key = ("stored", name, id(stored)) if stored.values.dtype != np.int32 else object()
        if key not in self.done:
            scale = stored.scale if stored.axis is not None else stored.scale[0]
            parts = {"int8": stored.values, "scale": scale}
            if stored.zero or not bare:
                parts["zero"] = np.full(np.shape(scale), stored.zero, stored.values.dtype)
            names = [self._new(f"{name}/{part}", np.asarray(array)) for part, array in parts.items()]
            self.done[key] = self._fresh(f"{name}/steps")
            attributes = {} if stored.axis is None else {"axis": stored.axis}
            self._node("DequantizeLinear", names, self.done[key], **attributes)
        return self.done[key]

    def _new(self, name: str, array: np.ndarray) -> str:
        import numpy as np
        import onnx

        name = self._fresh(name)
        self.tensors[name] = onnx.numpy_helper.from_array(np.ascontiguousarray(array).reshape(np.shape(array)), name)
        return name

    def _fresh(self, name: str) -> str:
        i, found = 0, name
        while found in self.taken:
            i += 1
            found = f"{name}/{i}"
        self.taken.add(found)
        return found


def folds(graph: Graph, node: onnx.NodeProto) -> bool:
    """Whether `node` is a normalization over the last axis with constant scale and bias."""
    if node.op_type != "LayerNormalization" or len(node.output) > 1 or node.output[0] in graph.outputs:
        return False
    parts = [graph.constants.get(name) for name in node.input[1:]]
    return all(part is not None and len(part.dims) == 1 for part in parts)


def weights_of(graph: Graph, layers: Sequence[Layer]) -> list[np.ndarray]:
    """The weights of MatMul and Gemm layers, each [input channels, output channels]."""
    import onnx

    arrays = [(layer.axis, onnx.numpy_helper.to_array(graph.constants[str(layer.weight)])) for layer in layers]
    return [array if axis == 1 else array.T for axis, array in arrays]
