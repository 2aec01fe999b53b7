"""Constants folded, dead and duplicate parts removed: what `simplify` does, and `quantize` before it counts weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

from portolan.core import protos
from portolan.core.silence import runtime
from portolan.errors import ModelError
from portolan.passes._graphs import LARGEST_FILE, hushed

if TYPE_CHECKING:
    import onnx

#: Where folding everything makes the file larger, only results up to this many bytes are folded.
SMALL = 2**16
_ALL = 2**62
#: It turns MatMul and Add into Reshape, Gemm, Reshape: three nodes for two, and runtimes no longer see attention in it.
_SKIPPED = ["FusionGemm"]


def slim(proto: onnx.ModelProto, name: str, *, grow: bool = False) -> onnx.ModelProto:
    """The same function as a smaller graph. `proto` itself stays as it is.

    Args:
        proto: from `open_graph`.
        name: what to call the model in an error.
        grow: fold everything, also where that makes the file larger: weights that the graph computes become constants.

    Raises:
        ModelError: the graph holds something that onnxslim cannot handle.
    """
    if grow:
        return _fold(_transposed(proto), name, _ALL)
    folded = _fold(_copy(proto), name, _ALL)
    if protos.weight_bytes(folded) > protos.weight_bytes(proto) + SMALL:
        return _fold(_copy(proto), name, SMALL)
    return folded


def _copy(proto: onnx.ModelProto) -> onnx.ModelProto:
    import onnx

    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    return copy


def _fold(copy: onnx.ModelProto, name: str, largest: int) -> onnx.ModelProto:
    """What onnxslim makes of a graph that nobody else needs: large ones are copied no more often than they have to."""
    runtime("onnxruntime")  # onnxslim evaluates constants with it
    import onnxslim

    try:
        with hushed():
            # Its own shape inference is off: it merges free dimensions with static ones it meets, which is wrong.
            slimmed: onnx.ModelProto = onnxslim.slim(
                _inferred(copy),
                no_shape_infer=True,
                size_threshold=largest,
                skip_fusion_patterns=_SKIPPED,
            )
    except Exception as error:  # third-party code over any graph: whatever it raises is the reason
        raise ModelError(
            f"`{name}` cannot be simplified: {type(error).__name__}: {error}", hint="leave `simplify` out of the recipe"
        ) from error
    return slimmed


def _transposed(proto: onnx.ModelProto) -> onnx.ModelProto:
    """A copy with transposed constants folded: onnxslim leaves those that are used elsewhere too (tied weights)."""
    import onnx

    copy = _copy(proto)
    constants = {tensor.name: tensor for tensor in copy.graph.initializer}
    outputs = {value.name for value in copy.graph.output}
    kept = []
    for node in copy.graph.node:
        if node.op_type != "Transpose" or node.input[0] not in constants or node.output[0] in outputs:
            kept.append(node)
            continue
        axes = next((list(a.ints) for a in node.attribute if a.name == "perm"), None)
        array = onnx.numpy_helper.to_array(constants[node.input[0]]).transpose(axes)
        copy.graph.initializer.append(onnx.numpy_helper.from_array(array.copy(order="C"), node.output[0]))
    del copy.graph.node[:]
    copy.graph.node.extend(kept)
    return copy


def _inferred(proto: onnx.ModelProto) -> onnx.ModelProto:
    import onnx

    # Shape inference serializes the graph, which protobuf refuses above 2 GiB.
    if protos.weight_bytes(proto) >= LARGEST_FILE:
        return proto
    return onnx.shape_inference.infer_shapes(proto, data_prop=True)
