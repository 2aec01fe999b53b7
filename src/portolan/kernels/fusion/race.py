"""Kernels of chains raced against the nodes that they would replace, in ONNX Runtime, which has fusions of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np

from portolan.core.extensions import place as place_of
from portolan.core.extensions import there
from portolan.core.target import Target
from portolan.errors import DiskFull, OutOfMemory, PortolanError, WorkerTimeout
from portolan.kernels import place
from portolan.kernels.candidates import default
from portolan.kernels.compiler import find
from portolan.kernels.embed.carry import carry
from portolan.kernels.embed.ort import door
from portolan.kernels.fusion.chains import Chain, Finder
from portolan.kernels.fusion.programs import Fused, fused, sizes
from portolan.kernels.fusion.rewriting import domain, replaced
from portolan.kernels.fusion.spaces import Shape, shapes
from portolan.kernels.lower.nest import groups
from portolan.kernels.tree import Program
from portolan.kernels.tune import source
from portolan.kernels.verify import AGENT, TOLERANCE, Judge, difference, odd_cases
from portolan.measure.lock import measuring
from portolan.worker.session import Worker, patience

if TYPE_CHECKING:
    import onnx

#: What stands for a free size while chains are raced: a free size is a batch, mostly.
_FREE = 1
_SECONDS, _ROUNDS = 0.01, 9
_PATIENCE = 60.0


def found(graph: onnx.ModelProto) -> list[Fused]:
    """The chains of a graph that can be kernels."""
    known, numbers = shapes(graph), numbers_of(graph)
    chains = Finder(graph.graph, known, numbers).chains()
    return [one for chain in chains if (one := fused(chain, known, numbers)) is not None]


def numbers_of(graph: onnx.ModelProto) -> dict[str, float]:
    """Constants of one element, by name."""
    import onnx

    tensors = [t for t in graph.graph.initializer if t.data_type == onnx.TensorProto.FLOAT and np.prod(t.dims) == 1]
    return {t.name: float(onnx.numpy_helper.to_array(t).reshape(-1)[0]) for t in tensors}


def put_in(graph: onnx.ModelProto, chains: Sequence[Fused], target: Target, gain: float, most: int) -> int:
    """Replaces those of the chains that are right and at least `gain` times as fast as kernels; how many.

    Args:
        graph: is changed.
        chains: what `found` gave.
        target: this machine.
        gain: the least ratio of times.
        most: different chains that are tried.

    Raises:
        NoBackend: there is no C compiler.
    """
    numbers = numbers_of(graph)
    with TemporaryDirectory(prefix="portolan-fuse-") as scratch:
        better = _Race(graph, shapes(graph), numbers, target, Path(scratch)).winners(chains, gain, most)
    if better:
        replaced(graph, better, numbers)
    return len(better)


@dataclass(frozen=True)
class _Race:
    """Kernels against the nodes that they replace.

    Attributes:
        graph: the model.
        shapes: of its tensors.
        numbers: its constants of one element.
        target: this machine.
        folder: for models of one chain.
    """

    graph: onnx.ModelProto
    shapes: Mapping[str, Shape]
    numbers: Mapping[str, float]
    target: Target
    folder: Path

    def winners(self, found: Sequence[Fused], gain: float, most: int) -> list[Fused]:
        """Those that are right and at least `gain` times as fast."""
        same: dict[str, list[Fused]] = {}
        for one in found:
            same.setdefault(one.program.name, []).append(one)
        order = sorted(same.values(), key=lambda alike: -len(alike) * self._moved(alike[0].chain))
        better: list[Fused] = []
        for alike in order[:most]:
            if self._remembered(alike[0]) >= gain:
                better += alike
        return better

    def _remembered(self, one: Fused) -> float:
        """The ratio of a chain, from an earlier race or one run now: the same model is fused the same way again."""
        compiler = find()
        schedules = [default(one.program, g, self.target, self._sizes(one)) for g in groups(one.program)]
        code = source(one.program, schedules) + "\n" + door(one.program, domain(one.program.name))
        key = place.digest("fused", code, self._sizes(one), self.target.fingerprint, compiler.version, _runtime())
        name = one.program.name
        if (known := place.recall(place.RACED, key)) is not None and there(name, self.target):
            return float(known["ratio"])
        try:
            path = compiler.build(code)
            with Worker(module=AGENT) as worker:
                cases = odd_cases(one.program, schedules[0], np.random.default_rng(0))
                Judge(one.program, cases, worker).error(one.program.name, path)
                ratio = self._ratio(one, path, worker)
            reason = None
        except (DiskFull, OutOfMemory, WorkerTimeout):
            return 0.0  # for want of what there may be next time: not remembered
        except PortolanError as error:
            # A kernel that cannot be compiled, is wrong or crashes is no candidate; the nodes stay.
            ratio, reason = 0.0, error.message
        else:
            _kept(one.program, path, place_of(name, self.target))
        place.remember(
            place.RACED, key, {"chain": [n.op_type for n in one.chain.nodes], "ratio": ratio, "reason": reason}
        )
        return ratio

    def _sizes(self, one: Fused) -> dict[str, int]:
        free = {s: _FREE for shape in self.shapes.values() for s in shape if isinstance(s, str)}
        return sizes(one, self.shapes, free)

    def _moved(self, chain: Chain) -> float:
        """About how many elements go through memory between the nodes."""
        return float(np.prod([s if isinstance(s, int) else _FREE for s in chain.space])) * (len(chain.nodes) - 1)

    def _ratio(self, one: Fused, path: Path, worker: Worker) -> float:
        """How many times as fast the kernel is as the chain, both in ONNX Runtime on one thread."""
        arrays = self._arrays(one)
        plain, kernel = self._models(one)
        for name, file, libraries in (("plain", plain, []), ("kernel", kernel, [str(path)])):
            worker.ask("model", timeout=patience(_PATIENCE), name=name, path=str(file), libraries=libraries)
        given: dict[str, Any] = {"dtypes": ["f32"] * len(arrays)}
        tensors = {f"a{n}": a for n, a in enumerate(arrays)}
        results = [
            worker.ask("answer", timeout=patience(_PATIENCE), tensors=tensors, name=name, **given).tensors
            for name in ("plain", "kernel")
        ]
        if any(difference(results[1][name], results[0][name]) > TOLERANCE["f32"] for name in results[0]):
            return 0.0
        with measuring():
            reply = worker.ask(
                "contest", timeout=patience(_PATIENCE), tensors=tensors, names=["plain", "kernel"],
                seconds=_SECONDS, rounds=_ROUNDS, **given,
            )  # fmt: skip
        ms = reply.fields["ms"]
        return float(np.median(np.asarray(ms["plain"]) / np.asarray(ms["kernel"])))

    def _arrays(self, one: Fused) -> list[np.ndarray]:
        rng = np.random.default_rng(0)
        given = [name for name in one.chain.inputs if name not in self._constants(one)]
        fixed = [[s if isinstance(s, int) else _FREE for s in self.shapes[name]] for name in given]
        return [rng.standard_normal(shape, np.float32) * np.float32(0.5) for shape in fixed]

    def _constants(self, one: Fused) -> dict[str, onnx.TensorProto]:
        return {t.name: t for t in self.graph.graph.initializer if t.name in one.chain.inputs}

    def _models(self, one: Fused) -> tuple[Path, Path]:
        """The chain as a model of its own, as it is and as a kernel."""
        import onnx
        from onnx import helper

        chain = one.chain
        constants = self._constants(one)
        read = {name for node in chain.nodes for name in node.input}
        held = [t for t in self.graph.graph.initializer if t.name in read]

        def declared(name: str) -> onnx.ValueInfoProto:
            return helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, list(self.shapes[name]))

        inputs = [declared(name) for name in chain.inputs if name not in constants]
        outputs = [declared(name) for name in chain.outputs]
        graph = helper.make_graph(list(chain.nodes), "chain", inputs, outputs, held)
        plain = helper.make_model(graph, opset_imports=self.graph.opset_import, ir_version=self.graph.ir_version)
        kernel = onnx.ModelProto.FromString(plain.SerializeToString())
        replaced(kernel, [replace(one, chain=replace(chain, nodes=tuple(kernel.graph.node)))], self.numbers)
        paths = self.folder / f"{one.program.name}.onnx", self.folder / f"{one.program.name}_kernel.onnx"
        for path, made in zip(paths, (plain, kernel), strict=True):
            path.write_bytes(made.SerializeToString())
        return paths


def _kept(program: Program, library: Path, folder: Path) -> None:
    """Puts a compiled kernel where runtimes look for it, whole or not at all."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folder.parent, prefix=".part-") as scratch:
        made = carry(Path(scratch) / folder.name, [(program, library)], domain(program.name)).path
        if folder.is_dir():  # compiled again, by another compiler or for another race
            folder.rename(Path(scratch) / "old")
        made.rename(folder)


def _runtime() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("onnxruntime")
    except PackageNotFoundError:
        return "none"
