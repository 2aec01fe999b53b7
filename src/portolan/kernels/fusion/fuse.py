"""`fuse`: chains of operators as kernels, where measuring shows that they are faster so.

Hand-tuned libraries stay where they win; generated code takes what they have no operator for. Each chain of element
functions, reductions and normalisations becomes a kernel of one pass over memory, compiled and checked as all kernels
are, and is raced against the same nodes in ONNX Runtime, which has fusions of its own. After: Jeon et al., Collage,
PACT 2022 (arXiv:2111.00655).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated

import numpy as np

from portolan.core.extensions import FEATURE, place
from portolan.core.model import Model
from portolan.core.passes import Context, Params, compression
from portolan.core.schema import Knob
from portolan.core.target import Target
from portolan.errors import PortolanError, UsageError
from portolan.kernels.candidates import default
from portolan.kernels.compiler import Compiler, find
from portolan.kernels.embed.ort import door
from portolan.kernels.fusion.chains import Chain, Finder
from portolan.kernels.fusion.programs import Fused, fused, sizes
from portolan.kernels.fusion.rewriting import domain, replaced
from portolan.kernels.fusion.spaces import Shape, shapes
from portolan.kernels.lower.nest import groups
from portolan.kernels.place import write_whole
from portolan.kernels.tune import source
from portolan.kernels.verify import AGENT, TOLERANCE, Judge, difference, odd_cases
from portolan.measure.lock import measuring
from portolan.passes._graphs import save_graph
from portolan.passes._surgery import opened
from portolan.targets.local import local
from portolan.worker.session import Worker, patience

if TYPE_CHECKING:
    import onnx

#: What stands for a free size while chains are raced.
_FREE = 1
_SECONDS, _ROUNDS = 0.01, 9
_PATIENCE = 60.0


def _refuse(model: Model, options: Params, target: Target) -> str | None:
    del model, options
    here = local.detect()
    if target.fingerprint != here.fingerprint:
        return "kernels are compiled and raced on the machine that they are for, and the target is another one"
    try:
        find()
    except PortolanError as error:
        return f"{error.message}: {error.hint}"
    return None


@compression(
    produces=lambda options: (FEATURE,), refuse=_refuse, stage=lambda options: "precision",
    distributions=("onnx", "onnxruntime", "onnxslim", "numpy"),
)  # fmt: skip
def fuse(
    model: Model,
    context: Context,
    *,
    gain: Annotated[float, Knob(search=False, help="how many times as fast a kernel has to be than its nodes")] = 1.1,
    most: Annotated[int, Knob(search=False, help="different chains that are tried")] = 12,
) -> Model:
    """Replaces chains of operators by generated kernels where these are faster.

    Args:
        model: any model.
        context: its folder gets the new file; kernels are compiled for its target, which is this machine.
        gain: the least ratio of times, chain by chain, at which one is replaced.
        most: how many different chains are compiled and raced, those that move most memory first.

    Raises:
        UsageError: no chain is found, or none is faster as a kernel.
        ModelError: the graph holds something that cannot be handled.
        NoBackend: there is no C compiler.
    """
    if reason := _refuse(model, {}, context.target):
        raise UsageError(f"`{model.name}` cannot be fused: {reason}", hint="leave `fuse` out of the recipe")
    original, graph = opened(model)
    known, numbers = shapes(graph), _numbers(graph)
    found = [one for c in Finder(graph.graph, known, numbers).chains() if (one := fused(c, known, numbers)) is not None]
    if not found:
        raise UsageError(f"`{model.name}` has no chain of operators to fuse", hint="leave `fuse` out of the recipe")
    with TemporaryDirectory(prefix="portolan-fuse-") as scratch:
        better = _Race(graph, known, numbers, context.target, Path(scratch)).winners(found, gain, most)
    if not better:
        raise UsageError(
            f"none of the {len(found)} chains of `{model.name}` is {gain:g} times as fast as a kernel",
            hint="leave `fuse` out of the recipe",
        )
    replaced(graph, better, numbers)
    return save_graph(graph, original, model, context.folder, (FEATURE,))


def _numbers(graph: onnx.ModelProto) -> dict[str, float]:
    """Constants of one element, by name."""
    import onnx

    tensors = [t for t in graph.graph.initializer if t.data_type == onnx.TensorProto.FLOAT and np.prod(t.dims) == 1]
    return {t.name: float(onnx.numpy_helper.to_array(t).reshape(-1)[0]) for t in tensors}


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
        compiler, better = find(), []
        for alike in order[:most]:
            try:
                with Worker(module=AGENT) as worker:
                    ratio = self._ratio(alike[0], compiler, worker)
            except PortolanError:
                # A kernel that cannot be compiled, is wrong or crashes is no candidate; the nodes stay.
                continue
            if ratio >= gain:
                better += alike
        return better

    def _sizes(self, one: Fused) -> dict[str, int]:
        free = {s: _FREE for shape in self.shapes.values() for s in shape if isinstance(s, str)}
        return sizes(one, self.shapes, free)

    def _moved(self, chain: Chain) -> float:
        """About how many elements go through memory between the nodes."""
        return float(np.prod([s if isinstance(s, int) else _FREE for s in chain.space])) * (len(chain.nodes) - 1)

    def _ratio(self, one: Fused, compiler: Compiler, worker: Worker) -> float:
        """How many times as fast the kernel is as the chain, both in ONNX Runtime on one thread."""
        program, at = one.program, self._sizes(one)
        schedules = [default(program, g, self.target, at) for g in groups(program)]
        code = source(program, schedules) + "\n" + door(program, domain(program.name))
        path = compiler.build(code)
        Judge(program, odd_cases(program, schedules[0], np.random.default_rng(0)), worker).error(program.name, path)
        arrays = self._arrays(one)
        plain, kernel = self._models(one)
        for name, file, libraries in (("plain", plain, []), ("kernel", kernel, [str(path)])):
            worker.ask("model", timeout=patience(_PATIENCE), name=name, path=str(file), libraries=libraries)
        given = {"dtypes": ["f32"] * len(arrays)}
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
        write_whole(place(program.name, self.target), path.read_bytes())
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
