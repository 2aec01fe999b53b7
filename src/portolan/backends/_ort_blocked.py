"""Convolutions in ONNX Runtime's own form, where kernels of ours can take the place of some.

The runtime rewrites a graph so that convolutions hand each other tensors whose channels lie in blocks
(`com.microsoft.nchwc`). An operator in the model's own graph would have them brought into order before it, and back
behind it. So the runtime is asked for what it makes of the graph, layers are replaced in that, and the result is
loaded.

Which layers, a model says in its metadata, as the pass `winograd` measured it. A layer is named by the weights that the
runtime made for it: what another version or processor makes of them is no layer that was measured, and stays.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from portolan.core.carried import Argument, Carried
from portolan.core.extensions import domain, mentions
from portolan.core.native import registered
from portolan.core.silence import runtime
from portolan.core.target import Target
from portolan.errors import ModelError
from portolan.targets.local import local

if TYPE_CHECKING:
    import numpy as np
    import onnx

FEATURE = "convolutions:winograd"
"""What the pass produces."""
NOTED = "portolan.winograd"
"""The entry of the metadata."""
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
#: Protobuf's limit for what is given to the runtime, and room for the graph.
LARGEST = 2**31 - 2**24
_Libraries = Sequence[tuple[str, Path]]


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


@dataclass(frozen=True)
class Noted:
    """What a model's metadata say.

    Attributes:
        operators: names by `out` and `added`: for tiles of `out` by `out` results, with a tensor to add or without.
        layers: the `out` of each key.
    """

    operators: Mapping[tuple[int, bool], str]
    layers: Mapping[str, int]

    def write(self, proto: onnx.ModelProto) -> None:
        """Puts it into the metadata."""
        names = [[out, added, domain(name)] for (out, added), name in sorted(self.operators.items())]
        entry = {"operators": names, "layers": dict(sorted(self.layers.items()))}
        others = [one for one in proto.metadata_props if one.key != NOTED]
        del proto.metadata_props[:]
        proto.metadata_props.extend(others)
        proto.metadata_props.add(key=NOTED, value=json.dumps(entry))

    @classmethod
    def read(cls, proto: onnx.ModelProto) -> Noted:
        """What the metadata hold; nothing where there is no entry.

        Raises:
            ModelError: the entry is not what `write` writes.
        """
        text = next((entry.value for entry in proto.metadata_props if entry.key == NOTED), None)
        if text is None:
            return cls({}, {})
        try:
            data = json.loads(text)
            names = {(int(out), bool(added)): str(name).rpartition(".")[2] for out, added, name in data["operators"]}
            return cls(names, {str(key): int(out) for key, out in data["layers"].items()})
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ModelError(
                f"the model's metadata `{NOTED}` cannot be read: {error}", hint="apply the pass `winograd` again"
            ) from error


def optimised(path: Path, folder: Path, libraries: _Libraries = ()) -> onnx.ModelProto:
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


def unblocked(weights: np.ndarray, size: int) -> np.ndarray:
    """[k, c, 3, 3], of weights that lie as [k / size, c / size, 3, 3, size, size], channels that are read first."""
    k, c = weights.shape[:2]
    blocks = weights.reshape(k // size, c // size, 3, 3, size, size)
    return blocks.transpose(0, 5, 1, 4, 2, 3).reshape(k, c, 3, 3)


@lru_cache(maxsize=4)
def _filters(side: int) -> np.ndarray:
    """[side, 3]: what weights are multiplied by along one axis; the points are those of winograd.c."""
    import numpy as np

    a = 0.5**0.5
    points = [0.0, a, -a, 2 * a, -2 * a] if side == 6 else [0.0, 1.0, -1.0]
    rows = [[x**power / np.prod([x - other for other in points if other != x]) for power in range(3)] for x in points]
    return np.asarray([*rows, [0.0, 0.0, 1.0]])


def transformed(weights: np.ndarray, points: int, columns: int) -> np.ndarray:
    """[k / columns, points, c, columns], of weights [k, c, 3, 3]; worked out in float64."""
    import numpy as np

    k, c = weights.shape[:2]
    one = _filters(round(points**0.5))
    both = np.einsum("pi,qj->pqij", one, one).reshape(points, 9)
    whole = np.pad(weights, ((0, -k % columns), (0, 0), (0, 0), (0, 0)))
    # In the order of the result before it is multiplied out: that is the smaller.
    ordered = whole.reshape(-1, columns, c, 9).transpose(0, 3, 2, 1).astype(np.float64)
    made = np.empty((len(ordered), points, c, columns), np.float32)
    for block, result in zip(ordered, made, strict=True):
        result[:] = (both @ block.reshape(9, -1)).reshape(result.shape)
    return made


@dataclass(frozen=True)
class Rewritten:
    """A graph in the runtime's form with kernels in place of layers.

    Attributes:
        path: its file, which only declares the kernels' constants.
        constants: those, by name.
        layers: how many kernels compute.
    """

    path: Path
    constants: Mapping[str, np.ndarray]
    layers: int

    def give(self, settings: Any) -> None:
        """Gives a session's options the constants, which must outlive the session: none of them is copied."""
        value = runtime("onnxruntime").OrtValue.ortvalue_from_numpy
        settings.add_external_initializers(list(self.constants), [value(array) for array in self.constants.values()])


@contextmanager
def rewritten(path: Path, kernels: Sequence[Carried], libraries: _Libraries) -> Iterator[Rewritten | None]:
    """A graph with the kernels that its metadata name, for as long as the runtime needs it to load.

    Args:
        path: the model.
        kernels: those that are there, whose libraries are among `libraries`.

    Returns:
        None where they name none, or no layer is one that was measured, as with another version of the runtime.
    """
    import onnx

    if not kernels or not mentions(path, NOTED):
        yield None
        return
    noted = Noted.read(onnx.load(path, load_external_data=False))
    there = {kernel.name: kernel for kernel in kernels}
    usable = {which: there[name] for which, name in noted.operators.items() if name in there}
    if not usable:
        yield None
        return
    # What the runtime has mapped into memory stays there when the file is gone, where the system allows that at all.
    with TemporaryDirectory(prefix="portolan-blocked-", ignore_cleanup_errors=True) as scratch:
        proto = optimised(path, Path(scratch), libraries)
        chosen = [
            (one, kernel)
            for one in layers(proto, local.processor())
            if (kernel := usable.get((noted.layers.get(one.key, 0), one.added))) is not None
        ]
        yield _written(proto, chosen, Path(scratch)) if chosen else None


def _written(proto: onnx.ModelProto, chosen: Sequence[tuple[Layer, Carried]], folder: Path) -> Rewritten:
    import onnx

    made = put_in(proto, chosen)
    for name, array in made.items():
        declared = proto.graph.initializer.add(name=name, dims=array.shape, data_type=onnx.TensorProto.FLOAT)
        declared.data_location = onnx.TensorProto.EXTERNAL
        declared.external_data.add(key="location", value="given")
    path = folder / "given.onnx"
    path.write_bytes(proto.SerializeToString())
    return Rewritten(path, made, len(chosen))
