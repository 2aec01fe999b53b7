"""The convolutions of a graph in the runtime's form, and kernels in their place."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from portolan.backends._blocked.weights import transformed, unblocked
from portolan.core.carried import Argument, Carried
from portolan.core.extensions import domain
from portolan.core.native import registered
from portolan.core.silence import runtime
from portolan.core.target import Target

if TYPE_CHECKING:
    import numpy as np
    import onnx

BLOCKED = "com.microsoft.nchwc"
#: What a layer has to say of itself; it may leave out what is like this.
_USUAL: Mapping[str, Any] = {
    "kernel_shape": [3, 3], "strides": [1, 1], "dilations": [1, 1], "pads": [1, 1, 1, 1], "group": 1,
    "auto_pad": b"NOTSET",
}  # fmt: skip
#: The least result, by the function behind a layer.
_LEAST = {b"": -math.inf, b"Relu": 0.0}
#: Constants of so many bytes lie apart from the graph.
_APART = 1024
Libraries = Sequence[tuple[str, Path]]


@dataclass(frozen=True)
class Layer:
    """A convolution of 3 by 3 in the runtime's form.

    Attributes:
        node: the convolution.
        key: which weights it has.
        channels: what it reads, and what it gives.
        added: whether results are added to another tensor.
        least: below which no result is.
    """

    node: onnx.NodeProto
    key: str
    channels: tuple[int, int]
    added: bool
    least: float


def optimised(path: Path, folder: Path, libraries: Libraries = ()) -> onnx.ModelProto:
    """What ONNX Runtime makes of a graph for this processor, with the operators of these libraries, by domain.

    It is written into `folder`, where large constants stay, except those of convolutions that a kernel could compute.
    """
    import onnx
    from onnx.external_data_helper import load_external_data_for_tensor

    ort = runtime("onnxruntime")
    settings = ort.SessionOptions()
    settings.optimized_model_filepath = str(folder / "made.onnx")
    for key, value in (("file_name", "made.data"), ("min_size_in_bytes", str(_APART))):
        settings.add_session_config_entry(f"session.optimized_model_external_initializers_{key}", value)
    settings.log_severity_level = 4  # it warns that the file is for this processor, which is what it is for
    settings.intra_op_num_threads = 1
    registered(settings, libraries)
    ort.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])
    proto = onnx.load(settings.optimized_model_filepath, load_external_data=False)
    read = {name for node in proto.graph.node if node.domain == BLOCKED for name in node.input[1:3]}
    for tensor in proto.graph.initializer:
        apart = tensor.data_location == onnx.TensorProto.EXTERNAL
        if apart and tensor.name in read and list(tensor.dims[2:]) in ([], [3, 3]):
            load_external_data_for_tensor(tensor, str(folder))
            tensor.data_location = onnx.TensorProto.DEFAULT
            del tensor.external_data[:]
    return proto


def block(target: Target) -> int:
    """Channels of a block, by the processor's vectors."""
    return 16 if target.has("avx512f") else 8


def layers(proto: onnx.ModelProto, target: Target) -> list[Layer]:
    """The convolutions of what `optimised` gave that a kernel can take the place of."""
    constants = {tensor.name: tensor for tensor in proto.graph.initializer}
    return [one for node in proto.graph.node if (one := _layer(node, constants, block(target))) is not None]


def _layer(node: onnx.NodeProto, constants: Mapping[str, onnx.TensorProto], size: int) -> Layer | None:
    from onnx import helper

    if node.op_type != "Conv" or node.domain != BLOCKED:
        return None
    said = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    function = said.pop("activation", b"")
    if said.keys() - _USUAL.keys() or function not in _LEAST or any(said.get(k, v) != v for k, v in _USUAL.items()):
        return None
    weights = constants.get(node.input[1])
    # Fewer channels than a block are read in their own order, as images begin.
    if weights is None or list(weights.dims[2:]) != [3, 3] or any(n % size for n in weights.dims[:2]):
        return None
    key = hashlib.sha256(weights.raw_data).hexdigest()[:16]
    given, made = weights.dims[1], weights.dims[0]
    return Layer(node, key, (given, made), len(node.input) > 3 and bool(node.input[3]), _LEAST[function])


def operator(name: str, entry: str, out: int, added: bool, size: int) -> Carried:
    """What a kernel takes and gives, for channels in blocks of `size`; see kernels/winograd/winograd.c."""
    image, result = ("n", "c", "h", "w"), ("n", "k", "h", "w")
    inputs = [
        Argument("x", "f32", image), Argument("u", "f32", ("q", (out + 2) ** 2, "c", 2 * size)),
        Argument("bias", "f32", ("k",)), Argument("least", "f32", (1,)),
        *([Argument("z", "f32", result)] if added else []),
    ]  # fmt: skip
    symbols = ("n", "c", "h", "w", "k", "q")
    files = f"{name}.so", f"{name}.c"
    return Carried(domain(name), name, entry, *files, "", symbols, tuple(inputs), (Argument("y", "f32", result),))


def put_in(proto: onnx.ModelProto, chosen: Sequence[tuple[Layer, Carried]]) -> dict[str, np.ndarray]:
    """Puts operators in place of layers of `proto`, and drops weights that nothing reads then.

    Returns:
        The operators' own constants by name: the weights, transformed, and what bounds results.
    """
    import numpy as np
    from onnx import helper, numpy_helper

    constants = {tensor.name: tensor for tensor in proto.graph.initializer}
    made: dict[str, np.ndarray] = {}
    for one, kernel in chosen:
        (x, weights, *others), (_, points, _, columns) = one.node.input, kernel.inputs[1].axes
        u, least, bias = f"{kernel.name}/{weights}", f"least/{one.least:g}", others[0] if others else ""
        if not bias:
            bias = f"zeros/{one.channels[1]}"
            made[bias] = np.zeros(one.channels[1], np.float32)
        if u not in made:
            blocked = numpy_helper.to_array(constants[weights])
            made[u] = transformed(unblocked(blocked, int(columns) // 2), int(points), int(columns))
        made[least] = np.asarray([one.least], np.float32)
        names = [x, u, bias, least, *others[1:2]] if one.added else [x, u, bias, least]
        one.node.CopyFrom(
            helper.make_node(kernel.name, names, list(one.node.output), one.node.name, domain=kernel.domain)
        )
    used = {name for node in proto.graph.node for name in node.input}
    kept = [tensor for tensor in proto.graph.initializer if tensor.name in used]
    del proto.graph.initializer[:]
    proto.graph.initializer.extend(kept)
    wanted = {kernel.domain for _, kernel in chosen} - {entry.domain for entry in proto.opset_import}
    proto.opset_import.extend(helper.make_opsetid(name, 1) for name in sorted(wanted))
    return made
