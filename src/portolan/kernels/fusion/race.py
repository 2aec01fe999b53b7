"""Kernels of chains raced against the nodes that they would replace, in ONNX Runtime, which has fusions of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np

from portolan.core.carried import Carried
from portolan.core.extensions import place as place_of
from portolan.core.extensions import there
from portolan.core.target import Target
from portolan.errors import DiskFull, OutOfMemory, PortolanError, WorkerTimeout
from portolan.kernels import place
from portolan.kernels.compiler import find
from portolan.kernels.embed.carry import placed
from portolan.kernels.embed.ort import door
from portolan.kernels.fusion.chains import Finder
from portolan.kernels.fusion.piece import Piece
from portolan.kernels.fusion.programs import fused
from portolan.kernels.fusion.rewriting import replaced
from portolan.kernels.fusion.spaces import Shape, shapes
from portolan.kernels.recurrent.stacks import stacks
from portolan.kernels.verify import AGENT, TOLERANCE, difference
from portolan.measure.lock import measuring
from portolan.passes._surgery import drop_unused
from portolan.worker.session import Worker, patience

if TYPE_CHECKING:
    import onnx

#: What stands for a free size while chains are raced: a free size is a batch, mostly.
_FREE = 1
#: And while the kernel is compared at another size.
_OTHER = 5
_SECONDS, _ROUNDS = 0.01, 9
_PATIENCE = 60.0


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
            if self._remembered(alike[0]) >= gain:
                better += alike
        return better

    def _remembered(self, one: Piece) -> float:
        """The ratio of a piece, from an earlier race or one run now: the same model is fused the same way again."""
        compiler, operator = find(), one.operator()
        code = one.code(self.target, self.shapes) + "\n" + door(operator)
        sides = [array.shape for array in self._arrays(one)]
        key = place.digest("fused", code, sides, self.target.fingerprint, compiler.version, runtime_version())
        if (known := place.recall(place.RACED, key)) is not None and there(one.name, self.target):
            return float(known["ratio"])
        try:
            path = compiler.build(code)
            with Worker(module=AGENT) as worker:
                one.check(path, worker, self.target, self.shapes)
                ratio = self._ratio(one, path, worker)
            reason = None
        except (DiskFull, OutOfMemory, WorkerTimeout):
            return 0.0  # for want of what there may be next time: not remembered
        except PortolanError as error:
            # A kernel that cannot be compiled, is wrong or crashes is no candidate; the nodes stay.
            ratio, reason = 0.0, error.message
        else:
            kept(operator, path, place_of(one.name, self.target))
        place.remember(place.RACED, key, {"chain": [n.op_type for n in one.nodes], "ratio": ratio, "reason": reason})
        return ratio

    def _ratio(self, one: Piece, path: Path, worker: Worker) -> float:
        """How many times as fast as the nodes the kernel is in ONNX Runtime, on one thread; 0 where they differ."""
        plain, kernel = self._models(one)
        for name, file, libraries in (("plain", plain, []), ("kernel", kernel, [str(path)])):
            worker.ask("model", timeout=patience(_PATIENCE), name=name, path=str(file), libraries=libraries)
        usual, other = self._arrays(one), self._arrays(one, other=True)
        given: dict[str, Any] = {"dtypes": ["f32"] * len(usual)}
        free = any(a.shape != b.shape for a, b in zip(usual, other, strict=True))
        for arrays in (usual, other) if free else (usual,):
            tensors = {f"a{n}": a for n, a in enumerate(arrays)}
            results = [
                worker.ask("answer", timeout=patience(_PATIENCE), tensors=tensors, name=name, **given).tensors
                for name in ("plain", "kernel")
            ]
            if any(difference(results[1][name], results[0][name]) > TOLERANCE["f32"] for name in results[0]):
                return 0.0
        with measuring():
            reply = worker.ask(
                "contest", timeout=patience(_PATIENCE), tensors={f"a{n}": a for n, a in enumerate(usual)},
                names=["plain", "kernel"], seconds=_SECONDS, rounds=_ROUNDS, **given,
            )  # fmt: skip
        ms = reply.fields["ms"]
        return float(np.median(np.asarray(ms["plain"]) / np.asarray(ms["kernel"])))

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


def kept(operator: Carried, library: Path, folder: Path) -> None:
    """Puts a compiled kernel where runtimes look for it, whole or not at all."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folder.parent, prefix=".part-") as scratch:
        made = placed(Path(scratch) / folder.name, [(operator, library)]).path
        if folder.is_dir():  # compiled again, by another compiler or for another race
            folder.rename(Path(scratch) / "old")
        made.rename(folder)


def runtime_version() -> str:
    """ONNX Runtime's, without importing it."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("onnxruntime")
    except PackageNotFoundError:
        return "none"
