"""Apache TVM: native code from untuned schedules. It has none for convolutions on CPUs, so those run slowly."""

from __future__ import annotations

import os
import shutil
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from portolan.backends._artefact import Artefact, all_cores, explained
from portolan.backends._convert import Native, Workplace, compiled, foreign_type, graph
from portolan.core.backend import Backend, Support, Tensors
from portolan.core.model import Model
from portolan.core.schema import Knob
from portolan.core.silence import runtime
from portolan.core.target import Target

if TYPE_CHECKING:
    import numpy as np

_FILE = "model.so"
_TYPES = ("float32", "float64", "int64", "int32", "int8", "uint8", "bool")
_LACKS = (r"operators are not supported[^:]*: *\[?['\"]?([\w.]+)", r"OpNotImplemented.*?([A-Z]\w+)")
#: Its front end has no rule for these.
_LACKING = ("LSTM", "GRU", "RNN")


class Library(Native):
    """A loaded library. Its virtual machine keeps a stack, so one call at a time."""

    def __init__(self, artefact: Artefact, threads: int, place: Workplace | None = None) -> None:
        super().__init__(artefact, place)
        os.environ["TVM_NUM_THREADS"] = str(threads)  # read when the pool starts: once in a process
        self._threads, self._lock = threads, threading.Lock()
        self._tvm = runtime("tvm")
        with explained("tvm", artefact.path):
            module = self._tvm.runtime.load_module(str(artefact.path))
            self._machine = runtime("tvm.relax").VirtualMachine(module, self._tvm.cpu())

    def run(self, inputs: Tensors) -> dict[str, np.ndarray]:
        """Runs once."""
        import numpy as np

        cpu = self._tvm.cpu()
        values = [self._tvm.runtime.tensor(np.array(inputs[spec.name], order="C"), cpu) for spec in self._inputs]
        with self._lock:
            found = self._machine["main"](*values)
            several = [found] if hasattr(found, "numpy") else list(found)
            return self.named(value.numpy() for value in several)

    def facts(self) -> dict[str, Any]:
        """The device, and the threads that its pool was told to have."""
        return {"device": "cpu", "precision": "f32", "threads": self._threads}

    def close(self) -> None:
        """Drops the machine and its library."""
        self._machine = None
        super().close()


class Tvm(Backend):
    """TVM's CPU code, untuned: its tuner crashes here, see the facts in the guide."""

    name = "tvm"
    distributions = ("apache-tvm",)
    module = "tvm"
    fix = "portolan env add tvm"
    heavy = True
    native_code = True

    def probe(self, target: Target) -> Support:
        """Besides the package: a compiler that links what LLVM wrote."""
        support = super().probe(target)
        if support.ready and shutil.which("g++") is None and shutil.which("c++") is None:
            return Support(
                False, support.version, "TVM links with `g++`, which is not on the PATH", "apt-get install g++"
            )
        return support

    def refuse(self, model: Model, target: Target) -> str | None:
        """Besides the features: recurrent operators, and element types that it has none of."""
        if lacking := next((name for name in _LACKING if name in model.operators), None):
            return f"`tvm` has no operator `{lacking}`"
        return super().refuse(model, target) or foreign_type("tvm", model, *_TYPES)

    def compile(
        self,
        model: Model,
        target: Target,
        *,
        threads: Annotated[int, Knob(search=False, help="Threads of one inference; 0 means all cores.")] = 0,
    ) -> Native:
        """Compiles `model` for this processor."""

        def make(place: Workplace) -> Native:
            out = place.path / _FILE
            with explained("tvm", model.path, *_LACKS, doing="compile"):
                _compile(model, out, threads or target.cores)
            return Library(Artefact.of(model, out), threads or target.cores, place)

        return compiled("tvm", model, make)

    def load(self, folder: Path, *, threads: int = 0) -> Native:
        """Loads what was saved. It is native code: never load a stranger's."""
        return Library(Artefact.open(folder, _FILE), threads or all_cores())


def _compile(model: Model, out: Path, threads: int) -> None:
    tvm, relax = runtime("tvm"), runtime("tvm.relax")
    target = tvm.target.Target({"kind": "llvm", "mcpu": _processor(tvm), "num-cores": threads})
    module = runtime("tvm.relax.frontend.onnx").from_onnx(graph(model), keep_params_in_input=False)
    with target:
        # "zero" holds the fusion of operators: code without it is several times slower.
        steps = relax.transform.DecomposeOpsForInference(), relax.transform.CanonicalizeBindings()
        for step in (*steps, relax.get_pipeline("zero")):
            module = step(module)
        tvm.compile(module, target=target).export_library(str(out))


def _processor(tvm: Any) -> str:
    """What LLVM calls this processor."""
    return str(tvm.target.codegen.llvm_get_system_cpu())


tvm = Tvm()
