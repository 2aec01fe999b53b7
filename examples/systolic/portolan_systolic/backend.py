"""The backend: the chip takes what it can of a model, ONNX Runtime the rest. Importing it imports nothing heavy."""

from __future__ import annotations

from pathlib import Path

from portolan.core.backend import Backend, Executable, Exploit
from portolan.core.model import Model
from portolan.core.target import Target


class Systolic(Backend):
    """A simulated systolic array of 16 by 16 cells for int8, with 1 MB of memory and the CPU at its side."""

    name = "systolic"
    distributions = ("portolan-systolic", "onnxruntime")
    module = "onnxruntime"
    fix = "pip install ./examples/systolic"
    exploits = (Exploit("int8:static"),)
    searched = False  # a search measures, and on simulated hardware nothing is measured
    simulated = True

    def compile(self, model: Model, target: Target) -> Executable:
        """Programs for what the chip takes, graphs for the rest."""
        from portolan_systolic.shared import compiled

        return compiled(model)

    def load(self, folder: Path) -> Executable:
        """Reads what was saved."""
        from portolan_systolic.shared import load

        return load(folder)


systolic = Systolic()
