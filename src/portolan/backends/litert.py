"""LiteRT, once TensorFlow Lite, with XNNPACK: fast on the CPU, small at run time, at home on phones and boards."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from portolan.backends._artefact import Artefact, all_cores, explained
from portolan.backends._convert import Native, Workplace, compiled, foreign_type, free_axis
from portolan.backends._exported import exported
from portolan.core.backend import Backend, Tensors
from portolan.core.model import Model
from portolan.core.schema import Knob
from portolan.core.silence import runtime
from portolan.core.target import Target
from portolan.errors import UsageError

if TYPE_CHECKING:
    import numpy as np

_FILE = "model.tflite"
_TYPES = ("float32", "int64", "int32", "int8", "uint8", "bool")
_LACKS = (r"Lowering not found: ([\w.]+)", r"no (?:lowering|legalization) (?:rule )?for:? '?([\w.:]+)")


class Flatbuffer(Native):
    """A loaded flatbuffer. An interpreter serves one thread, so every caller has its own."""

    def __init__(self, artefact: Artefact, threads: int, place: Workplace | None = None) -> None:
        super().__init__(artefact, place)
        self._threads = threads
        with explained("litert", artefact.path):
            self._data = artefact.path.read_bytes()
            self._run: Callable[[Tensors], dict[str, np.ndarray]] = self.caller()

    def run(self, inputs: Tensors) -> dict[str, np.ndarray]:
        """Runs once, from one thread at a time."""
        return self._run(inputs)

    def caller(self) -> Callable[[Tensors], dict[str, np.ndarray]]:
        """A function with an interpreter of its own, for one thread."""
        runner = (
            runtime("ai_edge_litert.interpreter")
            .Interpreter(model_content=self._data, num_threads=self._threads)
            .get_signature_runner()
        )

        # The converter names by position.
        kinds = {name: details["dtype"] for name, details in runner.get_input_details().items()}
        places = [(f"args_{i}", spec.name) for i, spec in enumerate(self._inputs)]

        def run(inputs: Tensors) -> dict[str, np.ndarray]:
            values = runner(**{place: _narrowed(inputs[name], kinds[place], name) for place, name in places})
            return self.named(values[f"output_{i}"] for i in range(len(self._outputs)))

        return run

    def facts(self) -> dict[str, Any]:
        """XNNPACK computes in the types of the file."""
        return {"device": "cpu", "precision": "f32", "threads": self._threads, "delegate": "xnnpack"}

    def close(self) -> None:
        """Drops the interpreter and the file's bytes."""
        self._run, self._data = _closed, b""
        super().close()


def _narrowed(value: np.ndarray, kind: Any, name: str) -> np.ndarray:
    """An input in the type that the file has for it: the converter makes int64 int32.

    Raises:
        UsageError: a number does not fit.
    """
    import numpy as np

    found = np.ascontiguousarray(value, kind)
    if found.dtype != value.dtype and not np.array_equal(found, value):
        raise UsageError(
            f"`{name}` holds numbers that do not fit {found.dtype}, which `litert` computes in",
            hint="`--backend onnxruntime` computes in int64",
        )
    return found


def _closed(inputs: Tensors) -> dict[str, np.ndarray]:
    raise RuntimeError("this executable is closed")


class LiteRt(Backend):
    """LiteRT on the CPU through XNNPACK. Converting takes 6 to 8 s; sizes have to be fixed."""

    name = "litert"
    distributions = ("ai-edge-litert", "litert-torch", "torch")
    module = "ai_edge_litert"
    fix = "portolan env add litert"
    heavy = True

    def refuse(self, model: Model, target: Target) -> str | None:
        """Besides the features: free sizes, and element types that its files do not have."""
        return super().refuse(model, target) or free_axis("litert", model) or foreign_type("litert", model, *_TYPES)

    def compile(
        self,
        model: Model,
        target: Target,
        *,
        # Decided at load, but another value would be converted again.
        threads: Annotated[int, Knob(search=False, help="Threads of one inference; 0 means all cores.")] = 0,
    ) -> Native:
        """Converts the exported program of `model`, or the one that its graph is imported as."""

        def make(place: Workplace) -> Native:
            out = place.path / _FILE
            program = exported(model, "litert")
            with explained("litert", model.path, *_LACKS, doing="convert"):
                runtime("litert_torch").convert(program.module(), program.example_inputs[0]).export(str(out))
            return Flatbuffer(Artefact.of(model, out), threads or target.cores, place)

        return compiled("litert", model, make)

    def load(self, folder: Path, *, threads: int = 0) -> Native:
        """Loads what was saved; the converter is not needed."""
        return Flatbuffer(Artefact.open(folder, _FILE), threads or all_cores())


litert = LiteRt()
