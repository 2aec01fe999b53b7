"""A backend in one file: ONNX Runtime that gives memory back after each call, for devices with little of it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

from portolan.core.backend import Backend, Executable, Exploit
from portolan.core.model import Model
from portolan.core.schema import Knob, cores
from portolan.core.silence import runtime
from portolan.core.target import Target
from portolan.errors import ModelError, UnsupportedOperator
from portolan.targets.local import local

_LACKS = re.compile(r"Fatal error: (\S+?)\(-?\d+\) is not a registered function/op")
_DOT = ("avx512_vnni", "avx_vnni", "asimddp", "i8mm")


class Lean(Executable):
    """A session without a memory arena."""

    def __init__(self, path: Path, threads: int) -> None:
        ort = runtime("onnxruntime")  # imported with its telemetry switched off
        settings = ort.SessionOptions()
        settings.intra_op_num_threads = threads
        settings.enable_cpu_mem_arena = False
        settings.enable_mem_pattern = False
        settings.log_severity_level = 3
        try:
            self._session = ort.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])
        except Exception as error:  # whatever a runtime raises becomes one of Portolan's errors
            if found := _LACKS.search(str(error)):
                hint = "`--backend reference` has every operator that ONNX defines"
                raise UnsupportedOperator(f"`lean` has no operator `{found[1]}`", hint=hint, where=str(path)) from error
            raise ModelError(f"`lean` cannot read `{path.name}`", hint="export it again", where=str(path)) from error
        self._path = path
        self._names = [output.name for output in self._session.get_outputs()]

    def run(self, inputs: Any) -> dict[str, Any]:
        """Runs once."""
        return dict(zip(self._names, self._session.run(self._names, dict(inputs)), strict=True))

    def save(self, folder: Path) -> None:
        """Writes the graph as one file, external data included."""
        onnx = runtime("onnx")
        onnx.save(onnx.load(str(self._path)), str(folder / "model.onnx"))

    def facts(self) -> dict[str, Any]:
        """What the session says it does."""
        threads = self._session.get_session_options().intra_op_num_threads
        return {"device": "cpu", "precision": "f32", "threads": threads}


class LeanBackend(Backend):
    """The keyword-only parameters of `compile` are the options: flags, TOML keys and search space at once."""

    name = "lean"
    distributions = ("onnxruntime",)
    module = "onnxruntime"
    fix = "pip install onnxruntime"
    exploits = (Exploit("int8:dynamic", _DOT), Exploit("int8:static", _DOT))

    def compile(
        self,
        model: Model,
        target: Target,
        *,
        threads: Annotated[int, Knob(values=cores, help="Threads of one inference; 0 means all cores.")] = 0,
    ) -> Lean:
        """Loads `model`."""
        return Lean(model.path, threads or target.cores)

    def load(self, folder: Path, *, threads: int = 0) -> Lean:
        """Loads what was saved."""
        return Lean(folder / "model.onnx", threads or local.detect().cores)


lean = LeanBackend()
