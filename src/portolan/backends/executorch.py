"""ExecuTorch with XNNPACK: PyTorch's runtime for phones, level with ONNX Runtime on convolutional nets and BERT."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from portolan.backends._artefact import Artefact, explained
from portolan.backends._convert import Native, Workplace, compiled, foreign_type, free_axis
from portolan.backends._exported import exported, without_constants
from portolan.core.backend import Backend, Tensors
from portolan.core.model import Model
from portolan.core.silence import runtime
from portolan.core.target import Target

if TYPE_CHECKING:
    import numpy as np

_FILE, _CONSTANTS = "model.pte", "constants.npz"
_TYPES = ("float32", "float64", "int64", "int32", "int8", "uint8", "bool")
_LACKS = (r"Missing out variants: \{'?([\w.:]+)",)
_XNNPACK = "executorch.backends.xnnpack.partition.xnnpack_partitioner"


class Method(Native):
    """A loaded program's only method. It plans its memory once, so one call at a time."""

    def __init__(self, artefact: Artefact, constants: Mapping[int, np.ndarray], place: Workplace | None = None) -> None:
        super().__init__(artefact, place)
        self._constants = constants
        self._torch = runtime("torch")
        with explained("executorch", artefact.path):
            # The program is kept: its methods point into it.
            self._program = runtime("executorch.runtime").Runtime.get().load_program(str(artefact.path))
            self._method = self._program.load_method("forward")
        self._lock = threading.Lock()

    def run(self, inputs: Tensors) -> dict[str, np.ndarray]:
        """Runs once; the outputs are copied out of the plan's memory before another call may enter."""
        import numpy as np

        values = [self._torch.from_numpy(np.array(inputs[spec.name], order="C")) for spec in self._inputs]
        with self._lock:
            found = [value.numpy() for value in self._method.execute(values)]
            for place, constant in sorted(self._constants.items()):
                found.insert(place, constant)
            return self.named(found)

    def save(self, folder: Path) -> None:
        """Writes the program, and the outputs that are the same for all inputs."""
        import numpy as np

        super().save(folder)
        if self._constants:
            named: Any = {str(place): value for place, value in self._constants.items()}
            np.savez(folder / _CONSTANTS, **named)

    def facts(self) -> dict[str, Any]:
        """XNNPACK computes in the types of the program; how many threads its pool has, nothing tells."""
        return {"device": "cpu", "precision": "f32", "delegate": "xnnpack"}

    def close(self) -> None:
        """Drops the method and the program."""
        self._method = self._program = None
        super().close()


class ExecuTorch(Backend):
    """ExecuTorch on the CPU through XNNPACK. Lowering takes 10 to 33 s; sizes have to be fixed."""

    name = "executorch"
    distributions = ("executorch", "torch")
    module = "executorch"
    fix = "portolan env add executorch"
    heavy = True

    def refuse(self, model: Model, target: Target) -> str | None:
        """Besides the features: free sizes, and element types that its programs do not have."""
        refused = super().refuse(model, target) or free_axis("executorch", model)
        return refused or foreign_type("executorch", model, *_TYPES)

    def compile(self, model: Model, target: Target) -> Native:
        """Lowers the exported program of `model`, or the one that its graph is imported as."""
        del target

        def make(place: Workplace) -> Native:
            out = place.path / _FILE
            program, constants = without_constants(exported(model, "executorch"))
            with explained("executorch", model.path, *_LACKS, doing="lower"):
                partitioner = runtime(_XNNPACK).XnnpackPartitioner()
                lowered = runtime("executorch.exir").to_edge_transform_and_lower(program, partitioner=[partitioner])
                lowered.to_executorch().save(str(out))
            return Method(Artefact.of(model, out), constants, place)

        return compiled("executorch", model, make)

    def load(self, folder: Path) -> Native:
        """Loads what was saved."""
        return Method(Artefact.open(folder, _FILE), _constants(folder / _CONSTANTS))


def _constants(path: Path) -> dict[int, np.ndarray]:
    import numpy as np

    if not path.is_file():
        return {}
    with np.load(path, allow_pickle=False) as arrays:
        return {int(place): arrays[place] for place in arrays.files}


executorch = ExecuTorch()
