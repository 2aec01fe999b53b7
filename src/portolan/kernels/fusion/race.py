"""Kernels of chains raced against the nodes that they would replace, in ONNX Runtime, which has fusions of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import numpy as np

from portolan.core.target import Target
from portolan.kernels.contest import contested, remembered
from portolan.kernels.fusion.chains import Finder
from portolan.kernels.fusion.piece import Piece
from portolan.kernels.fusion.programs import fused
from portolan.kernels.fusion.rewriting import replaced
from portolan.kernels.fusion.spaces import Shape, shapes
from portolan.kernels.recurrent.stacks import stacks
from portolan.passes._surgery import drop_unused
from portolan.worker.session import Worker

if TYPE_CHECKING:
    import onnx

#: What stands for a free size while chains are raced: a free size is a batch, mostly.
_FREE = 1
#: And while the kernel is compared at another size.
_OTHER = 5


def found(graph: onnx.ModelProto) -> list[Piece]:
    """What can be kernels in a graph: stacks of recurrent layers, and chains of operators."""
    known, numbers = shapes(graph), numbers_of(graph)
    chains = Finder(graph.graph, known, numbers).chains()
    return [
        *stacks(graph.graph, known),
        *(one for chain in chains if (one := fused(chain, known, numbers)) is not None),
    ]


def numbers_of(graph: onnx.ModelProto) -> dict[str, float]:
    """Constants of one element, by name."""
    import onnx

    tensors = [t for t in graph.graph.initializer if t.data_type == onnx.TensorProto.FLOAT and np.prod(t.dims) == 1]
    return {t.name: float(onnx.numpy_helper.to_array(t).reshape(-1)[0]) for t in tensors}


def put_in(graph: onnx.ModelProto, pieces: Sequence[Piece], target: Target, gain: float, most: int) -> int:
    """Replaces those of the pieces that are right and at least `gain` times as fast as kernels; how many.

    Args:
        graph: is changed.
        pieces: what `found` gave.
        target: this machine.
        gain: the least ratio of times.
        most: different pieces that are tried.

    Raises:
        NoBackend: there is no C compiler.
    """
    with TemporaryDirectory(prefix="portolan-fuse-") as scratch:
        better = _Race(graph, shapes(graph), target, Path(scratch)).winners(pieces, gain, most)
    if better:
        replaced(graph, better)
        drop_unused(graph, keep_shapes=True)
    return len(better)


@dataclass(frozen=True)
class _Race:
    """Kernels against the nodes that they replace.

    Attributes:
        graph: the model.
        shapes: of its tensors.
        target: this machine.
        folder: for models of one chain.
    """

    graph: onnx.ModelProto
    shapes: Mapping[str, Shape]
    target: Target
    folder: Path

    def winners(self, found: Sequence[Piece], gain: float, most: int) -> list[Piece]:
        """Those that are right and at least `gain` times as fast."""
        same: dict[str, list[Piece]] = {}
        for one in found:
            same.setdefault(one.name, []).append(one)
        order = sorted(same.values(), key=lambda alike: -len(alike) * alike[0].moved())
        better: list[Piece] = []
        for alike in order[:most]:
            if self._ratio(alike[0]) >= gain:
                better += alike
        return better

    def _ratio(self, one: Piece) -> float:
        """How many times as fast as the nodes the kernel is."""
        usual, other = self._arrays(one), self._arrays(one, other=True)
        free = any(a.shape != b.shape for a, b in zip(usual, other, strict=True))

        def raced(library: Path, worker: Worker) -> float:
            one.check(library, worker, self.target, self.shapes)
            return contested(worker, *self._models(one), library, (usual, other) if free else (usual,))

        case = {"chain": [n.op_type for n in one.nodes], "sides": [array.shape for array in usual]}
        return remembered(one.operator(), one.code(self.target, self.shapes), case, self.target, raced)

    def _arrays(self, one: Piece, *, other: bool = False) -> list[np.ndarray]:
        """Arguments of the sizes that are raced, or where sizes are free, of others."""
        rng, constants = np.random.default_rng(0), self._constants(one)

        def size(axis: int | str) -> int:
            return axis if isinstance(axis, int) else _OTHER if other else one.sizes.get(axis, _FREE)

        sides = [[size(axis) for axis in self.shapes[name]] for name in one.inputs if name not in constants]
        return [rng.standard_normal(side, np.float32) * np.float32(0.5) for side in sides]

    def _constants(self, one: Piece) -> dict[str, onnx.TensorProto]:
        return {t.name: t for t in self.graph.graph.initializer if t.name in one.inputs}

    def _models(self, one: Piece) -> tuple[Path, Path]:
        """The nodes as a model of their own, as they are and as a kernel."""
        import onnx
        from onnx import helper

        constants = self._constants(one)
        read = {name for node in one.nodes for name in node.input}
        held = [t for t in self.graph.graph.initializer if t.name in read]

        def declared(name: str) -> onnx.ValueInfoProto:
            return helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, list(self.shapes[name]))

        inputs = [declared(name) for name in one.inputs if name not in constants]
        outputs = [declared(name) for name in one.outputs]
        graph = helper.make_graph(list(one.nodes), "piece", inputs, outputs, held)
        plain = helper.make_model(graph, opset_imports=self.graph.opset_import, ir_version=self.graph.ir_version)
        kernel = onnx.ModelProto.FromString(plain.SerializeToString())
        replaced(kernel, [one])
        paths = self.folder / f"{one.name}.onnx", self.folder / f"{one.name}_kernel.onnx"
        for path, made in zip(paths, (plain, kernel), strict=True):
            path.write_bytes(made.SerializeToString())
        return paths
