"""Walking ONNX protos: every node, graph and tensor of a model, subgraphs and functions included."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    import onnx

#: The domains whose operators the ONNX standard defines; the empty one is the default.
STANDARD = ("", "ai.onnx.ml", "ai.onnx.preview", "ai.onnx.preview.training")
#: The field of a ModelProto that holds its functions, that which holds its graph, and that of a graph that is a node.
FUNCTIONS, _GRAPH, _NODE = 25, 7, 1
#: The bytes of the kinds of field that have a fixed size.
_FIXED = {1: 8, 5: 4}


def domain(name: str) -> str:
    """A domain by its usual spelling: the default domain is the empty string."""
    return "" if name == "ai.onnx" else name


def subgraphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """The bodies that a node's attributes hold (If, Loop, Scan)."""
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def walk(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    """Every node, subgraphs included, outer ones first."""
    for node in nodes:
        yield node
        for graph in subgraphs(node):
            yield from walk(graph.node)


def graphs(model: onnx.ModelProto) -> Iterator[onnx.GraphProto]:
    """The main graph and every subgraph, those in functions included."""

    def below(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.GraphProto]:
        for node in nodes:
            for graph in subgraphs(node):
                yield graph
                yield from below(graph.node)

    yield model.graph
    yield from below(model.graph.node)
    for function in model.functions:
        yield from below(function.node)


def bodies(model: onnx.ModelProto) -> Iterator[tuple[dict[str, int], Iterator[onnx.NodeProto]]]:
    """The nodes of the graph and of each function, with the operator set versions that hold there."""
    yield _opsets(model.opset_import), walk(model.graph.node)
    for function in model.functions:
        yield _opsets(function.opset_import), walk(function.node)


def _opsets(imports: Iterable[onnx.OperatorSetIdProto]) -> dict[str, int]:
    return {domain(entry.domain): entry.version for entry in imports}


def types(model: onnx.ModelProto) -> dict[str, onnx.TypeProto]:
    """The type of every value that can be inferred, those in bodies included."""
    import onnx

    found: dict[str, onnx.TypeProto] = {}
    for graph in graphs(onnx.shape_inference.infer_shapes(model, data_prop=True)):
        found |= {value.name: value.type for value in (*graph.input, *graph.output, *graph.value_info)}
        for tensor in graph.initializer:
            found[tensor.name] = onnx.helper.make_tensor_type_proto(tensor.data_type, list(tensor.dims))
    return found


def tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Every stored tensor: initializers (dense and sparse) and attributes, wherever they are."""
    for graph in graphs(model):
        yield from graph.initializer
        for sparse in graph.sparse_initializer:
            yield from (sparse.values, sparse.indices)
    for _, nodes in bodies(model):
        for node in nodes:
            for attribute in node.attribute:
                if attribute.HasField("t"):
                    yield attribute.t
                yield from attribute.tensors
                for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
                    yield from (sparse.values, sparse.indices)


def weight_bytes(model: onnx.ModelProto) -> int:
    """Bytes of the graph's constants. Protobuf's own count ends in an error above 2 GiB."""
    return sum(len(tensor.raw_data) or 4 * len(tensor.float_data) for tensor in model.graph.initializer)


def element_type(code: int) -> str:
    """NumPy's name of an ONNX element type (`float32`, `bfloat16`, ...), or `string`.

    Raises:
        KeyError: ONNX has no such type, or this version of the package does not know it.
    """
    import onnx

    if code == onnx.TensorProto.STRING:
        return "string"
    return str(onnx.helper.tensor_dtype_to_np_dtype(code))


def bits(code: int) -> int:
    """Size of one stored element in bits, packed types included; 0 where it is not fixed (strings)."""
    import onnx

    name = onnx.TensorProto.DataType.Name(code)
    packed = {"INT4": 4, "UINT4": 4, "FLOAT4E2M1": 4, "INT2": 2, "UINT2": 2, "STRING": 0, "UNDEFINED": 0}
    if name in packed:
        return packed[name]
    return int(onnx.helper.tensor_dtype_to_np_dtype(code).itemsize) * 8


def operators(model: onnx.ModelProto) -> dict[str, int]:
    """How often each operator occurs; a call of a function counts as the operators in its body.

    Operators of other domains than the standard ones carry their domain: `com.microsoft.QLinearAdd`.
    """
    functions = {(domain(f.domain), f.name, f.overload): f for f in model.functions}
    known: dict[tuple[str, str, str], Mapping[str, int]] = {}

    def count(nodes: Iterable[onnx.NodeProto], calling: tuple[tuple[str, str, str], ...]) -> dict[str, int]:
        found: dict[str, int] = {}
        for node in walk(nodes):
            key = (domain(node.domain), node.op_type, node.overload)
            if key in functions and key not in calling:  # a function that calls itself is refused by the checker
                if key not in known:
                    known[key] = count(functions[key].node, (*calling, key))
                inner = known[key]
            else:
                name = node.op_type if key[0] in STANDARD else f"{key[0]}.{node.op_type}"
                inner = {name: 1}
            for name, times in inner.items():
                found[name] = found.get(name, 0) + times
        return found

    return dict(sorted(count(model.graph.node, ()).items(), key=lambda item: (-item[1], item[0])))


def fields(path: Path) -> set[int]:
    """The numbers of the fields of the message in a file, read without `onnx`, and without what the fields hold."""
    with path.open("rb") as file:
        return {number for number, _ in _fields(file, path.stat().st_size)}


def nodes(path: Path) -> bytes:
    """The nodes of the graph in a file, one after the other as they lie there, read without `onnx` and the weights."""
    found, size = [], path.stat().st_size
    with path.open("rb") as file:
        for number, length in _fields(file, size):
            if number == _GRAPH:
                inner = _fields(file, file.tell() + length)
                found += [file.read(long) for number, long in inner if number == _NODE]
    return b"".join(found)


def _fields(file: BinaryIO, end: int) -> Iterator[tuple[int, int]]:
    """The number and the length of each field up to `end`, the file standing where it begins."""
    while file.tell() < end and (tag := _number(file)) is not None:
        kind = tag & 7
        length = _number(file) if kind in (0, 2) else _FIXED.get(kind)
        if kind == 0:
            length = None if length is None else 0
        if length is None or length > end:
            break  # cut short, or no message of protobuf's
        after = file.tell() + length
        yield tag >> 3, length
        file.seek(after)


def _number(file: BinaryIO) -> int | None:
    """The number that comes next, seven bits a byte; None at the end of the file, or where there is none."""
    value = shift = 0
    while shift < 70 and (byte := file.read(1)):
        value |= (byte[0] & 0x7F) << shift
        if byte[0] < 0x80:
            return value
        shift += 7
    return None
