"""Graph surgery for weight-only quantization: which constants can be stored in few bits, and how a graph holds them.

One representation serves every runtime: DequantizeLinear in front of the operator, standard ONNX. ONNX Runtime turns
it and a MatMul into MatMulNBits, OpenVINO into a product with compressed weights, so weights stay in few bits in memory
too. Scales are float16 with a Cast that runtimes fold when they load. A table that Gather reads is different: its
DequantizeLinear would unpack every row on every run. Its rows are gathered as bytes, and those few are unpacked.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from portolan.errors import ModelError
from portolan.passes._opset import at_opset, without_weights
from portolan.passes._round import Bits, Codes, group_of
from portolan.passes._surgery import drop_unused

if TYPE_CHECKING:
    import numpy as np
    import onnx

Role = Literal["product", "table", "plain"]
#: The operator set that has DequantizeLinear over these bits: by column for 8, over groups for 4 and 2.
_OPSETS: Mapping[int, tuple[int, int]] = {8: (13, 4), 4: (21, 10), 2: (25, 13)}
#: Inputs that hold weights, of operators that take them in any shape.
_PLAIN = {"Conv": (1,), "ConvTranspose": (1,), "LSTM": (1, 2), "GRU": (1, 2), "RNN": (1, 2)}
#: Fewer weights than this under one scale are no smaller than floats, or hardly.
_FEWEST = 4


@dataclass(frozen=True)
class Layer:
    """A constant that operators multiply with or look up, in one role; one that is used in two roles is two layers.

    Attributes:
        name: of the initializer.
        role: `product` (MatMul, Gemm), `table` (Gather), or `plain` (convolutions and recurrent layers).
        transposed: whether the initializer is N x K; a product's weight is K x N otherwise.
        shape: of the initializer.
        users: the first output of each node that uses it so, and the number of the input there.
        inputs: what a product multiplies it with, one per user.
    """

    name: str
    role: Role
    transposed: bool
    shape: tuple[int, ...]
    users: tuple[tuple[str, int], ...]
    inputs: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        """Number of weights."""
        import math

        return math.prod(self.shape)

    @property
    def rows(self) -> int:
        """K, the length that is summed over; of a table, that of an entry."""
        if self.role == "product":
            return self.shape[1 if self.transposed else 0]
        return self.shape[-1] if self.role == "table" or len(self.shape) == 3 else self.size // self.shape[0]

    def bits(self, asked: Bits) -> Bits:
        """The bits it can have: 8 where the entries of a table do not fill whole bytes, and 4 for 2 in some products.

        ONNX Runtime 1.31 packs products of 2 bits wrongly where their columns do not fill whole bytes: it reads beyond
        the codes, and answers change from load to load.
        """
        if self.role == "product" and asked == 2 and self.size // self.rows % 4:
            return 4
        return 8 if self.role == "table" and self.rows % (8 // asked) else asked

    def group(self, bits: Bits, asked: int) -> int:
        """Weights under one scale."""
        return group_of(self.rows, asked, self.bits(bits))

    def stored(self, bits: Bits, asked: int) -> int:
        """Bytes on disk with scales in 16 bits."""
        real = self.bits(bits)
        scales = self.size // self.group(bits, asked)
        return (self.size * real + scales * (16 + (8 if self.role == "table" else real)) + 7) // 8

    def matrix(self, array: np.ndarray) -> np.ndarray:
        """The weights as K x N, from the initializer."""
        import numpy as np

        straight = self.role == "product" and not self.transposed
        return np.ascontiguousarray(array if straight else array.reshape(-1, self.rows).T)

    def array(self, matrix: np.ndarray) -> np.ndarray:
        """The initializer, from its weights as K x N."""
        import numpy as np

        straight = self.role == "product" and not self.transposed
        return np.ascontiguousarray(matrix if straight else matrix.T).reshape(self.shape)


def layers(graph: onnx.ModelProto, *, embeddings: bool = True) -> list[Layer]:
    """What can be quantized, in the order of the graph.

    Args:
        graph: with weights as initializers.
        embeddings: tables that Gather reads as well.
    """
    import onnx

    constants = {
        t.name: tuple(t.dims)
        for t in graph.graph.initializer
        if t.data_type == onnx.TensorProto.FLOAT and 0 not in t.dims
    }
    found: dict[tuple[str, Role, bool], Layer] = {}
    for node in graph.graph.node:
        for index, role, transposed in _roles(node):
            if index >= len(node.input) or (role == "table" and not embeddings):
                continue
            name = node.input[index]
            shape = constants.get(name, ())
            if len(shape) < 2 or (role != "plain" and len(shape) != 2):
                continue
            layer = Layer(name, role, transposed, shape, ((node.output[0], index),), (node.input[0],))
            if layer.rows < _FEWEST:
                continue
            key = (name, role, transposed)
            known = found.get(key)
            if known:
                layer = replace(known, users=known.users + layer.users, inputs=known.inputs + layer.inputs)
            found[key] = layer
    return list(found.values())


def _roles(node: onnx.NodeProto) -> Iterator[tuple[int, Role, bool]]:
    """The inputs of a node that may hold weights, with what they are to it."""
    if node.domain not in ("", "ai.onnx"):
        return
    attributes = {a.name: a for a in node.attribute}
    if node.op_type == "MatMul":
        yield 1, "product", False
    elif node.op_type == "Gemm" and not ("transA" in attributes and attributes["transA"].i):
        yield 1, "product", bool("transB" in attributes and attributes["transB"].i)
    elif node.op_type == "Gather" and not ("axis" in attributes and attributes["axis"].i):
        yield 0, "table", True
    for index in _PLAIN.get(node.op_type, ()):
        yield index, "plain", True


def check_finite(array: np.ndarray, name: str, model: str) -> None:
    """Refuses weights that no grid can hold.

    Raises:
        ModelError: a NaN or an infinite weight.
    """
    import numpy as np

    if not np.isfinite(array).all():
        raise ModelError(
            f"`{model}` cannot be quantized: its weight `{name}` holds NaN or infinite values",
            hint="the training went wrong, or the export: look at that weight",
        )


def store(graph: onnx.ModelProto, chosen: Sequence[tuple[Layer, Codes]], name: str) -> onnx.ModelProto:
    """A copy of the graph in which these layers are stored as codes.

    Args:
        graph: what `layers` looked at.
        chosen: layers and their codes.
        name: what to call the model in an error.

    Raises:
        ModelError: the graph cannot be converted to the operator set that has these types.
    """
    opset, version = _OPSETS[min((codes.bits for layer, codes in chosen if layer.role != "table"), default=8)]
    ranks = _ranks(graph)
    proto = at_opset(graph, opset, name)
    proto.ir_version = max(proto.ir_version, version)
    before: dict[str, list[onnx.NodeProto]] = {}
    instead: dict[str, list[onnx.NodeProto]] = {}
    users = {node.output[0]: node for node in proto.graph.node if node.output}
    for layer, codes in chosen:
        tag = _free_name(proto, f"{layer.name}.{layer.role}")
        if layer.role == "table":
            _add_table(proto, layer, codes, tag)
            for output, _ in layer.users:
                instead[output] = _lookup(proto, users[output], layer, codes, tag, ranks)
            continue
        _add_codes(proto, layer, codes, tag)
        for i, (output, index) in enumerate(layer.users):
            # One DequantizeLinear per user: runtimes fuse it only with a single one.
            value = f"{tag}.{i}"
            before.setdefault(output, []).extend(_dequantize(layer, codes, tag, value))
            users[output].input[index] = value
            if users[output].op_type == "Gemm":
                instead[output] = _product(proto, users[output], tag, i)
    nodes: list[onnx.NodeProto] = []
    for node in proto.graph.node:
        key = node.output[0] if node.output else ""
        nodes += [*before.get(key, []), *instead.get(key, [node])]
    scales = [_cast(t.name) for t in proto.graph.initializer if t.name.endswith(".scale16")]
    kept = [copy_of(node) for node in (*scales, *nodes)]
    del proto.graph.node[:]
    proto.graph.node.extend(kept)
    drop_unused(proto, keep_shapes=True)
    return proto


def copy_of(node: onnx.NodeProto) -> onnx.NodeProto:
    """A node of its own: the original goes when its list is emptied."""
    import onnx

    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    return copy


def _free_name(proto: onnx.ModelProto, name: str) -> str:
    taken = {t.name for t in proto.graph.initializer} | {o for n in proto.graph.node for o in (*n.output, n.name)}
    while any(other.startswith(f"{name}.") for other in taken):
        name += "_"
    return name


def _cast(tensor: str) -> onnx.NodeProto:
    import onnx

    name = tensor.removesuffix("16")
    return onnx.helper.make_node("Cast", [tensor], [name], name=name, to=onnx.TensorProto.FLOAT)


def _add(proto: onnx.ModelProto, name: str, array: np.ndarray, bits: Bits | None = None) -> None:
    """An initializer; codes of 4 and 2 bits are packed as ONNX has them, the first in the lowest bits."""
    import numpy as np
    import onnx

    if bits is None:
        proto.graph.initializer.append(onnx.numpy_helper.from_array(np.ascontiguousarray(array), name))
        return
    kind = {8: onnx.TensorProto.UINT8, 4: onnx.TensorProto.UINT4, 2: getattr(onnx.TensorProto, "UINT2", 0)}[bits]
    tensor = onnx.TensorProto(name=name, data_type=kind, dims=array.shape)
    flat = array.astype(np.uint8).ravel()
    each = 8 // bits
    padded = np.concatenate([flat, np.zeros(-flat.size % each, np.uint8)]).reshape(-1, each)
    packed = np.zeros(len(padded), np.uint8)
    for i in range(each):
        packed |= padded[:, i] << np.uint8(i * bits)
    tensor.raw_data = packed.tobytes()
    proto.graph.initializer.append(tensor)


def _add_scale(proto: onnx.ModelProto, tag: str, codes: Codes, scale: np.ndarray) -> None:
    import numpy as np

    # The Cast that gives `.scale` from it is added with the nodes.
    _add(proto, f"{tag}.scale16" if codes.half else f"{tag}.scale", scale.astype(np.float16) if codes.half else scale)


def _add_codes(proto: onnx.ModelProto, layer: Layer, codes: Codes, tag: str) -> None:
    whole, straight = codes.scale.shape[0] == 1, layer.role == "product"
    if straight:  # K x N, also where the initializer was N x K: only so runtimes see a product with codes
        array, scale, zero = codes.codes, codes.scale, codes.zero
    else:
        array, scale, zero = codes.codes.T, codes.scale.T, codes.zero.T
        if whole and array.shape[0] == layer.shape[0]:
            array = array.reshape(layer.shape)
    _add(proto, f"{tag}.codes", array, codes.bits)
    _add_scale(proto, tag, codes, scale.ravel() if whole else scale)
    _add(proto, f"{tag}.zero", zero.ravel() if whole else zero, codes.bits)
    if not straight and array.shape != layer.shape:
        import numpy as np

        _add(proto, f"{tag}.shape", np.array(layer.shape, np.int64))


def _dequantize(layer: Layer, codes: Codes, tag: str, value: str) -> Iterator[onnx.NodeProto]:
    import onnx

    whole, straight = codes.scale.shape[0] == 1, layer.role == "product"
    axis = int(straight) if whole else int(not straight)
    attributes: dict[str, Any] = {"axis": axis} | ({} if whole else {"block_size": codes.group})
    inputs = [f"{tag}.codes", f"{tag}.scale", f"{tag}.zero"]
    shaped = straight or (whole and codes.codes.shape[1] == layer.shape[0])
    flat = value if shaped else f"{value}.flat"
    yield onnx.helper.make_node("DequantizeLinear", inputs, [flat], name=flat, **attributes)
    if not shaped:
        yield onnx.helper.make_node("Reshape", [flat, f"{tag}.shape"], [value], name=value)


def _product(proto: onnx.ModelProto, node: onnx.NodeProto, tag: str, i: int) -> list[onnx.NodeProto]:
    """A Gemm as MatMul and Add, which runtimes fuse with DequantizeLinear; its weight is K x N by now."""
    import numpy as np
    from onnx import helper

    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    added = len(node.input) > 2 and bool(node.input[2])
    product, bias, found = node.output[0], node.input[2] if added else "", []

    def times(source: str, factor: float, what: str) -> str:
        name = f"{tag}.{i}.{what}"
        _add(proto, f"{name}.factor", np.array(factor, np.float32))
        found.append(helper.make_node("Mul", [source, f"{name}.factor"], [name], name=name))
        return name

    scaled = attributes.get("alpha", 1.0) != 1.0
    raw = f"{tag}.{i}.product" if added or scaled else product
    found.append(helper.make_node("MatMul", list(node.input[:2]), [raw], name=node.name or raw))
    if scaled:
        raw = times(raw, attributes["alpha"], "alpha")
    if added:
        if attributes.get("beta", 1.0) != 1.0:
            bias = times(bias, attributes["beta"], "beta")
        found.append(helper.make_node("Add", [raw, bias], [product], name=f"{tag}.{i}.add"))
    elif scaled:
        found[-1].output[0] = product
    return found


def _add_table(proto: onnx.ModelProto, layer: Layer, codes: Codes, tag: str) -> None:
    """Entries x groups x bytes; a byte holds codes of different parts of the group, for a Concat to put in order."""
    import numpy as np

    entries, groups = layer.shape[0], codes.scale.shape[0]
    parts = np.ascontiguousarray(codes.codes.T).reshape(entries, groups, 8 // codes.bits, -1)
    packed = np.zeros((entries, groups, parts.shape[-1]), np.uint8)
    for i in range(8 // codes.bits):
        packed |= parts[:, :, i] << np.uint8(i * codes.bits)
    shape = (entries, -1) if groups == 1 else (entries, groups, -1)
    _add(proto, f"{tag}.codes", packed.reshape(shape))
    scale = codes.scale.T.reshape(shape)
    # Not `scale16`: these are gathered before they are cast.
    _add(proto, f"{tag}.scales", scale.astype(np.float16) if codes.half else scale)
    _add(proto, f"{tag}.zeros", codes.zero.T.reshape(shape))


def _lookup(
    proto: onnx.ModelProto, node: onnx.NodeProto, layer: Layer, codes: Codes, tag: str, ranks: Mapping[str, int]
) -> list[onnx.NodeProto]:
    import numpy as np
    from onnx import helper

    ids, out, found = node.input[1], node.output[0], []
    at = _free_name(proto, f"{tag}.at.{out}")

    def make(operator: str, inputs: Sequence[str], name: str, **attributes: Any) -> str:
        found.append(helper.make_node(operator, list(inputs), [name], name=name, **attributes))
        return name

    def number(value: float) -> str:
        name = f"{at}.{value}"
        if all(t.name != name for t in proto.graph.initializer):
            _add(proto, name, np.array(value, np.float32))
        return name

    def halves(source: str, base: int) -> list[str]:
        """A number below `base * base` as its two digits."""
        high = make("Floor", [make("Mul", [source, number(1 / base)], f"{source}.share")], f"{source}.high")
        low = make("Sub", [source, make("Mul", [high, number(base)], f"{source}.whole")], f"{source}.low")
        return [low, high]

    pieces = {
        part: make("Cast", [make("Gather", [f"{tag}.{part}", ids], f"{at}.{part}", axis=0)], f"{at}.{part}.float", to=1)
        for part in ("codes", "scales", "zeros")
    }
    digits = [pieces["codes"]]
    if codes.bits < 8:
        digits = halves(digits[0], 16)
    if codes.bits < 4:
        digits = [digit for source in digits for digit in halves(source, 4)]
    value = make("Concat", digits, f"{at}.joined", axis=-1) if len(digits) > 1 else digits[0]
    value = make("Mul", [make("Sub", [value, pieces["zeros"]], f"{at}.moved"), pieces["scales"]], f"{at}.groups")
    if codes.scale.shape[0] > 1:
        shape = f"{at}.shape"
        if ids in ranks:  # a 0 keeps the size
            _add(proto, shape, np.array([0] * ranks[ids] + [layer.rows], np.int64))
        else:
            _add(proto, f"{at}.width", np.array([layer.rows], np.int64))
            make("Concat", [make("Shape", [ids], f"{at}.outer"), f"{at}.width"], shape, axis=0)
        make("Reshape", [value, shape], out)
    else:
        found[-1].output[0] = out
    return found


def _ranks(graph: onnx.ModelProto) -> dict[str, int]:
    """The number of dimensions of what is known of it."""
    import onnx

    light = without_weights(graph)[0]
    inferred = onnx.shape_inference.infer_shapes(light, data_prop=True).graph
    found = {t.name: len(t.dims) for t in graph.graph.initializer}
    for value in (*inferred.input, *inferred.value_info, *inferred.output):
        if value.type.tensor_type.HasField("shape"):
            found[value.name] = len(value.type.tensor_type.shape.dim)
    return found
