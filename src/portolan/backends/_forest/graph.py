"""Graphs that are an ensemble of trees and little else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from portolan.backends._artefact import other
from portolan.backends._forest.ensemble import CLASSES, DOMAIN, TREES, Array, Ensemble, Unreadable, read
from portolan.core.signature import Signature
from portolan.errors import ModelError, UnsupportedOperator

if TYPE_CHECKING:
    import onnx

Result = Literal["label", "scores"]
#: What a graph may hold besides one ensemble: a scaler before it, and what passes tensors on.
BESIDES = ("Scaler", "Identity", "Cast")


@dataclass(frozen=True)
class Graph:
    """One ensemble, from a graph's input to its outputs.

    Attributes:
        ensemble: the trees.
        input: the name of the rows, f32 [rows, features].
        features: of a row.
        offset, scale: f32 [features]: what is taken from each and it is multiplied with then; None without a scaler.
        outputs: what each output is, in the model's order.
    """

    ensemble: Ensemble
    input: str
    features: int
    offset: Array | None
    scale: Array | None
    outputs: Mapping[str, Result]

    @classmethod
    def of(cls, proto: onnx.ModelProto, signature: Signature) -> Graph:
        """Reads a model.

        Raises:
            ModelError: its inputs or outputs are none of an ensemble's.
            UnsupportedOperator: it has an operator, or a use of one, that is not ours.
        """
        return _Reader(signature).graph(proto.graph)


def unfit(signature: Signature) -> str | None:
    """Why a model of these inputs and outputs is refused; None where it is not."""
    if len(signature.inputs) != 1:
        return f"`forest` takes one input, and the model has {len(signature.inputs)}"
    [rows] = signature.inputs
    if len(rows.shape) != 2 or not isinstance(rows.shape[1], int):
        shape = "x".join(map(str, rows.shape)) or "scalar"
        return f"`forest` takes rows of a fixed number of features, and `{rows.name}` is {shape}"
    if rows.dtype != "float32":
        return f"`forest` takes rows of float32, and `{rows.name}` is {rows.dtype}"
    foreign = next((o for o in signature.outputs if o.dtype not in ("float32", "int64")), None)
    return None if foreign is None else f"`forest` has no tensors of {foreign.dtype}, which `{foreign.name}` is"


class _Reader:
    """What each tensor is, from node to node."""

    def __init__(self, signature: Signature) -> None:
        if reason := unfit(signature):
            raise ModelError(reason, hint=other("forest"))
        self._signature = signature
        [rows] = signature.inputs
        self._features = int(rows.shape[1])
        self._rows = {rows.name: False}  # and whether they are scaled
        self._results: dict[str, Result] = {}
        self._affine: tuple[Array, Array] | None = None
        self._ensemble: tuple[Ensemble, bool] | None = None

    def graph(self, graph: onnx.GraphProto) -> Graph:
        for node in graph.node:
            self._node(node)
        outputs = {o.name: self._results.get(o.name) for o in self._signature.outputs}
        kinds = [kind for kind in outputs.values() if kind]
        if self._ensemble is None or len(kinds) < len(outputs) or len({*kinds}) < len(kinds):
            operator = graph.node[-1].op_type if graph.node else TREES[0]
            raise _unsupported(operator, "where an output is neither label nor scores of an ensemble")
        ensemble, scaled = self._ensemble
        if ensemble.features > self._features:
            raise _unsupported(TREES[0], f"that reads more than {self._features} features")
        offset, scale = self._affine if scaled and self._affine else (None, None)
        return Graph(
            ensemble, next(iter(self._rows)), self._features, offset, scale, {n: k for n, k in outputs.items() if k}
        )

    def _node(self, node: onnx.NodeProto) -> None:
        kind = node.op_type if node.domain == (DOMAIN if node.op_type in (*TREES, "Scaler") else "") else None
        if kind in ("Identity", "Cast"):
            self._pass(node)
        elif kind == "Scaler" and self._rows.get(node.input[0]) is False and self._affine is None:
            self._affine = self._factors(node)
            self._rows[node.output[0]] = True
        elif kind in TREES and node.input[0] in self._rows and self._ensemble is None:
            try:
                self._ensemble = read(node), self._rows[node.input[0]]
            except Unreadable as error:
                raise _unsupported(node.op_type, f"with {error}") from error
            results: tuple[Result, ...] = ("label", "scores") if node.op_type == CLASSES else ("scores",)
            self._results |= dict(zip(node.output, results, strict=True))
        else:
            raise _unsupported(node.op_type, f"of {', '.join(node.input)}" if kind in (*TREES, *BESIDES) else "")

    def _pass(self, node: onnx.NodeProto) -> None:
        """Another name for a tensor; a Cast has to leave its type alone."""
        source, name = node.input[0], node.output[0]
        if source in self._rows and (node.op_type == "Identity" or _to(node) == "FLOAT"):
            self._rows[name] = self._rows[source]
        elif source in self._results and (
            node.op_type == "Identity" or _to(node) == ("INT64" if self._results[source] == "label" else "FLOAT")
        ):
            self._results[name] = self._results[source]
        else:
            raise _unsupported(node.op_type, f"of {source}")

    def _factors(self, node: onnx.NodeProto) -> tuple[Array, Array]:
        values = {a.name: np.array(a.floats, np.float32) for a in node.attribute}
        try:
            offset, scale = (np.broadcast_to(values[name], self._features) for name in ("offset", "scale"))
        except (KeyError, ValueError) as error:
            raise _unsupported("Scaler", f"that does not fit {self._features} features") from error
        return np.ascontiguousarray(offset), np.ascontiguousarray(scale)


def _to(node: onnx.NodeProto) -> str:
    from onnx import TensorProto

    return str(TensorProto.DataType.Name(next((a.i for a in node.attribute if a.name == "to"), 0)))


def _unsupported(operator: str, use: str) -> UnsupportedOperator:
    return UnsupportedOperator(f"`forest` has no operator `{operator}`{use and f' {use}'}", hint=other("forest"))
