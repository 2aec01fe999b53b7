"""ncnn, converted by pnnx: convolutional nets on phones and boards. It knows no batch axis."""

from __future__ import annotations

import os
import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from portolan.backends._artefact import Artefact, all_cores, explained, other
from portolan.backends._convert import Native, Workplace, compiled, foreign_type, free_axis, graph
from portolan.core.backend import Backend, Tensors
from portolan.core.model import Model
from portolan.core.schema import Knob, cores
from portolan.core.silence import runtime
from portolan.core.target import Target
from portolan.errors import ModelError, UnsupportedOperator

if TYPE_CHECKING:
    import numpy as np

Precision = Literal["f32", "bf16"]
_PARAM, _WEIGHTS = "model.param", "model.bin"
#: What pnnx turns into layers of ncnn; the rest it drops, or it writes layers that do not load.
_OPERATORS = frozenset(
    (
        *("Add", "AveragePool", "BatchNormalization", "Clip", "Concat", "Constant", "Conv", "ConvTranspose", "Div"),
        *("Dropout", "Elu", "Erf", "Exp", "Flatten", "Gelu", "Gemm", "GlobalAveragePool", "HardSigmoid", "HardSwish"),
        *("Identity", "InstanceNormalization", "LSTM", "LayerNormalization", "LeakyRelu", "Log", "MatMul", "MaxPool"),
        *("Mul", "PRelu", "Pad", "Pow", "ReduceMax", "ReduceMean", "ReduceSum", "Relu", "Reshape", "Resize", "Sigmoid"),
        *("Slice", "Softmax", "Softplus", "Split", "Sqrt", "Squeeze", "Sub", "Tanh", "Transpose", "Unsqueeze"),
    )
)


class Net(Native):
    """A loaded net. An extractor serves one call, so several threads may run at once."""

    def __init__(self, artefact: Artefact, precision: Precision, threads: int, place: Workplace | None = None) -> None:
        super().__init__(artefact, place)
        self._ncnn = runtime("ncnn")
        self._net = self._ncnn.Net()
        options = self._net.opt
        options.num_threads = threads
        options.use_fp16_storage = options.use_fp16_packed = options.use_fp16_arithmetic = False
        options.use_bf16_storage = precision == "bf16"
        weights = artefact.path.with_name(_WEIGHTS)
        with explained("ncnn", artefact.path):
            # 0 is success; its own reason goes to stderr.
            if self._net.load_param(str(artefact.path)) or self._net.load_model(str(weights)):
                raise RuntimeError("the net does not load: pnnx wrote layers that ncnn lacks")
        self._names = list(self._net.output_names())

    def run(self, inputs: Tensors) -> dict[str, np.ndarray]:
        """Runs once; the batch axis of one is taken off and put back."""
        import numpy as np

        extractor = self._net.create_extractor()
        for i, spec in enumerate(self._inputs):
            row = np.ascontiguousarray(inputs[spec.name][0])  # a Mat borrows its memory, so it has to have a name
            extractor.input(f"in{i}", self._ncnn.Mat(row).clone())
        found = [np.array(extractor.extract(name)[1]) for name in self._names]
        return self.named(
            value.reshape([int(dim) for dim in spec.shape]) for value, spec in zip(found, self._outputs, strict=True)
        )

    def save(self, folder: Path) -> None:
        """Writes the layers, their weights and the signature."""
        super().save(folder)
        shutil.copyfile(self._artefact.path.with_name(_WEIGHTS), folder / _WEIGHTS)

    def facts(self) -> dict[str, Any]:
        """What the net's options say."""
        options = self._net.opt
        precision = "bf16" if options.use_bf16_storage else "f32"
        return {"device": "cpu", "precision": precision, "threads": options.num_threads}


class Ncnn(Backend):
    """ncnn on the CPU, for single images: batches of one, convolutions and what goes with them."""

    name = "ncnn"
    distributions = ("ncnn", "pnnx")
    module = "ncnn"
    fix = "portolan env add ncnn"
    portable = True

    def refuse(self, model: Model, target: Target) -> str | None:
        """Besides the features: batches, free sizes, other types than floats, and operators that pnnx drops."""
        for spec in (*model.signature.inputs, *model.signature.outputs):
            if len(spec.shape) < 2 or spec.shape[0] != 1:
                shape = "x".join(map(str, spec.shape)) or "scalar"
                return f"`ncnn` has no batch axis: `{spec.name}:{shape}` does not begin with 1"
        if lacking := next((name for name in sorted(model.operators) if name not in _OPERATORS), None):
            return f"`ncnn` has no operator `{lacking}`"
        return super().refuse(model, target) or free_axis("ncnn", model) or foreign_type("ncnn", model, "float32")

    def compile(
        self,
        model: Model,
        target: Target,
        *,
        precision: Annotated[Precision, Knob(help="How numbers are stored; bf16 is not exact.")] = "f32",
        threads: Annotated[int, Knob(values=cores, help="Threads of one inference; 0 means all cores.")] = 0,
    ) -> Native:
        """Converts `model`, and makes sure that nothing of it was dropped.

        Raises:
            UnsupportedOperator: one that pnnx would drop.
        """
        if lacking := next((name for name in sorted(model.operators) if name not in _OPERATORS), None):
            raise UnsupportedOperator(
                f"`ncnn` has no operator `{lacking}`",
                hint=other("ncnn"),
                where=str(model.path),
            )

        def make(place: Workplace) -> Native:
            with explained("ncnn", model.path, doing="convert"):
                path = _converted(model, place.path)
            return Net(Artefact.of(model, path), precision, threads or target.cores, place)

        return compiled("ncnn", model, make, exact=precision == "f32")

    def load(self, folder: Path, *, precision: Precision = "f32", threads: int = 0) -> Native:
        """Loads what was saved."""
        return Net(Artefact.open(folder, _PARAM), precision, threads or all_cores())


def _converted(model: Model, folder: Path) -> Path:
    """Runs pnnx on a copy: it leaves eight files beside its input, and its exit status is 0 also where it failed."""
    import onnx

    onnx.save(graph(model), str(folder / "model.onnx"))
    shapes = ",".join("[" + ",".join(map(str, spec.shape)) + "]f32" for spec in model.signature.inputs)
    command = [str(_pnnx()), "model.onnx", f"inputshape={shapes}", "fp16=0"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    param, weights = folder / "model.ncnn.param", folder / "model.ncnn.bin"
    if not (param.is_file() and weights.is_file()):
        last = (done.stderr or done.stdout).strip().splitlines()[-1:] or [f"it ended with {done.returncode}"]
        raise RuntimeError(f"pnnx wrote no net: {last[0]}")
    weights.rename(folder / _WEIGHTS)
    return param.rename(folder / _PARAM)


def _pnnx() -> Path:
    """The converter inside its wheel: the package's Python part would import torch.

    Raises:
        ModelError: it is not there.
    """
    spec = find_spec("pnnx")
    for place in (spec.submodule_search_locations or ()) if spec else ():
        for path in (Path(place) / "pnnx", Path(place) / "bin" / "pnnx"):
            if path.is_file() and os.access(path, os.X_OK):
                return path
    raise ModelError("the converter `pnnx` is not installed", hint="portolan env repair ncnn")


ncnn = Ncnn()
