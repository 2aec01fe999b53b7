"""Which convolutions of a graph are faster with fewer products, and by which tiles: measured layer by layer.

A layer is raced as the runtime has it between others: on tensors in blocks of channels, which nothing reorders.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import numpy as np

from portolan.backends._artefact import explained
from portolan.backends._blocked.layers import BLOCKED, Layer, block, layers, operator, optimised, put_in
from portolan.backends._blocked.noted import Noted
from portolan.core.carried import Carried
from portolan.core.signature import Signature
from portolan.core.silence import runtime
from portolan.core.target import Target
from portolan.kernels.contest import contested, remembered
from portolan.kernels.printers.c import function_name, prelude
from portolan.worker.session import Worker

if TYPE_CHECKING:
    import onnx

#: Sides of tiles: more products are saved by larger ones, whose weights are larger.
OUTS = (4, 2)
#: What stands for free sizes: a batch is first, and others are of images.
_BATCH, _SIDE = 1, 224
#: And the batch while a kernel is compared besides.
_OTHER = 3
_L2 = 1 << 20


@dataclass(frozen=True)
class Form:
    """Layers of one form take the same time.

    Attributes:
        channels: what they read, and what they give.
        image: rows and columns.
        added: whether results are added to another tensor.
    """

    channels: tuple[int, int]
    image: tuple[int, int]
    added: bool

    @property
    def products(self) -> int:
        """Without tricks."""
        return 9 * self.channels[0] * self.channels[1] * self.image[0] * self.image[1]


def best(path: Path, signature: Signature, target: Target, gain: float, most: int) -> Noted:
    """The layers of a graph that are right and at least `gain` times as fast by a kernel, with the fastest tiles.

    Args:
        path: the graph; ONNX Runtime rewrites it for this processor.
        signature: its inputs.
        target: this machine.
        gain: the least ratio of times.
        most: forms that are tried, those with the most products first.

    Raises:
        NoBackend: there is no C compiler.
        ModelError: the runtime cannot run it, with 224 for free sizes behind the first.
    """
    kept = TemporaryDirectory(prefix="portolan-winograd-", ignore_cleanup_errors=True)
    with kept as scratch, explained("onnxruntime", path, doing="run"):
        proto = optimised(path, Path(scratch))
        forms = _forms(proto, layers(proto, target), signature, Path(scratch))
    order = sorted(forms, key=lambda form: -form.products * len(forms[form]))
    race = _Race(proto, target)
    operators: dict[tuple[int, bool], str] = {}
    chosen: dict[str, int] = {}
    for form in order[:most]:
        ratios = {out: race.ratio(forms[form][0], form, out) for out in OUTS}
        out = max(ratios, key=lambda out: ratios[out])
        if ratios[out] >= gain:
            operators[out, form.added] = kernel(out, form.added, target)[0].name
            # Layers of several forms may share weights: what has the most products says.
            chosen = {one.key: out for one in forms[form]} | chosen
    return Noted(operators, chosen)


def kernel(out: int, added: bool, target: Target) -> tuple[Carried, str]:
    """The operator for tiles of `out` by `out` results, and its code without a door."""
    size = block(target)
    numbers: dict[str, object] = {
        "LANES": size, "OUT": out, "ADDED": int(added), "SPACE": target.caches.get("L2", _L2),
        "THREADS": target.cores,
    }  # fmt: skip
    name = f"fused_{hashlib.sha256(repr(('winograd', sorted(numbers.items()))).encode()).hexdigest()[:12]}"
    numbers["ENTRY"] = function_name(name)
    source = (Path(__file__).parent / "winograd.c").read_text(encoding="utf-8")
    head = [f"#define {macro} {value}" for macro, value in numbers.items()]
    return operator(name, function_name(name), out, added, size), "\n".join((*head, prelude(), source))


def _forms(
    proto: onnx.ModelProto, found: Sequence[Layer], signature: Signature, folder: Path
) -> dict[Form, list[Layer]]:
    """The layers by form: sizes are those that the runtime sees in one run.

    `folder` holds what `proto` leaves out, and gets a file of its own.
    """
    import onnx

    if not found:
        return {}
    seen = onnx.ModelProto.FromString(proto.SerializeToString())
    known = {value.name for value in (*seen.graph.input, *seen.graph.output)}
    names = list(dict.fromkeys(one.node.input[0] for one in found))
    for name in names:
        if name not in known:
            seen.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    feeds = {spec.name: _zeros(spec.shape, spec.dtype) for spec in signature.inputs}
    ort = runtime("onnxruntime")
    settings = ort.SessionOptions()
    settings.log_severity_level = 4
    settings.intra_op_num_threads = 1
    (folder / "seen.onnx").write_bytes(seen.SerializeToString())
    session = ort.InferenceSession(str(folder / "seen.onnx"), settings, providers=["CPUExecutionProvider"])
    wanted = [name for name in names if name not in feeds]
    sides = {name: array.shape[2:] for name, array in zip(wanted, session.run(wanted, feeds), strict=True)}
    sides |= {name: array.shape[2:] for name, array in feeds.items()}
    forms: dict[Form, list[Layer]] = {}
    for one in found:
        height, width = sides[one.node.input[0]]
        forms.setdefault(Form(one.channels, (height, width), one.added), []).append(one)
    return forms


def _zeros(shape: Sequence[int | str], dtype: str) -> np.ndarray:
    free = (_BATCH, *[_SIDE] * len(shape))
    return np.zeros([size if isinstance(size, int) else free[n] for n, size in enumerate(shape)], dtype)


@dataclass(frozen=True)
class _Race:
    """Kernels against the runtime's own convolutions, on one thread.

    Attributes:
        proto: the graph in the runtime's form.
        target: this machine.
    """

    proto: onnx.ModelProto
    target: Target

    def ratio(self, one: Layer, form: Form, out: int) -> float:
        """How many times as fast a layer is by a kernel."""
        carried, code = kernel(out, form.added, self.target)

        def raced(library: Path, worker: Worker) -> float:
            plain = self._alone(one, form)
            with TemporaryDirectory(prefix="portolan-winograd-") as scratch:
                paths = Path(scratch) / "plain.onnx", Path(scratch) / "kernel.onnx"
                for path, made in zip(paths, (plain, self._replaced(plain, carried)), strict=True):
                    path.write_bytes(made.SerializeToString())
                cases = [_arrays(plain, form, batch) for batch in (_BATCH, _OTHER)]
                return contested(worker, *paths, library, cases)

        return remembered(carried, code, {"convolution": repr(form), "out": out}, self.target, raced)

    def _replaced(self, plain: onnx.ModelProto, carried: Carried) -> onnx.ModelProto:
        import onnx

        made = onnx.ModelProto.FromString(plain.SerializeToString())
        constants = put_in(made, [(layer, carried) for layer in layers(made, self.target)])
        made.graph.initializer.extend(onnx.numpy_helper.from_array(a, name) for name, a in constants.items())
        return made

    def _alone(self, one: Layer, form: Form) -> onnx.ModelProto:
        """The layer as a model of its own, in the runtime's form."""
        from onnx import TensorProto, helper

        constants = [t for t in self.proto.graph.initializer if t.name in one.node.input]
        given, made = form.channels
        read = {one.node.input[0]: given} | ({one.node.input[3]: made} if form.added else {})

        def declared(name: str, channels: int) -> onnx.ValueInfoProto:
            return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", channels, *form.image])

        inputs = [declared(name, channels) for name, channels in read.items()]
        graph = helper.make_graph([one.node], "layer", inputs, [declared(one.node.output[0], made)], constants)
        imports = [helper.make_opsetid("", 17), helper.make_opsetid(BLOCKED, 1)]
        return helper.make_model(graph, opset_imports=imports, ir_version=8)


def _arrays(model: onnx.ModelProto, form: Form, batch: int) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    channels = [value.type.tensor_type.shape.dim[1].dim_value for value in model.graph.input]
    return [rng.standard_normal((batch, count, *form.image), np.float32) * np.float32(0.5) for count in channels]
