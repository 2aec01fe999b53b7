"""ONNX's own reference evaluator: slow, and right. The oracle that other backends are compared with."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from portolan.backends._artefact import Artefact, explained
from portolan.core.backend import Backend, Executable, Tensors
from portolan.core.model import Model
from portolan.core.silence import runtime
from portolan.core.target import Target

if TYPE_CHECKING:
    import numpy as np

_LACKS = (
    r"Node type '([^']+)' from domain",
    r"No registered schema for operator '([^']+)'",
    r"implementation for operator '([^']+)'",
)


class Evaluator(Executable):
    """A graph that NumPy walks node by node."""

    def __init__(self, artefact: Artefact) -> None:
        with explained("reference", artefact.path, *_LACKS), artefact.unpacked() as path:
            self._evaluator = runtime("onnx.reference").ReferenceEvaluator(str(path))
        self._artefact = artefact
        self._names = artefact.outputs

    def run(self, inputs: Tensors) -> dict[str, np.ndarray]:
        """Runs once. The evaluator may hand out views of inputs and weights, so its results are copied."""
        values = self._evaluator.run(list(self._names), dict(inputs))
        return {name: value.copy() for name, value in zip(self._names, values, strict=True)}

    def save(self, folder: Path) -> None:
        """Writes the graph."""
        self._artefact.save(folder)

    def facts(self) -> dict[str, Any]:
        """NumPy, in the arithmetic that the graph states."""
        return {"device": "cpu", "precision": "f32"}


class Reference(Backend):
    """The reference evaluator; it has no options."""

    name = "reference"
    distributions = ("onnx",)
    module = "onnx"
    fix = "pip install onnx"
    searched = False

    def compile(self, model: Model, target: Target) -> Evaluator:
        """Loads `model`."""
        del target
        return Evaluator(Artefact.of(model))

    def load(self, folder: Path) -> Evaluator:
        """Loads what was saved."""
        return Evaluator(Artefact.open(folder))


reference = Reference()
