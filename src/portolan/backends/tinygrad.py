"""tinygrad: exact, small, slow. Kernels are compiled as the model loads: compiled ones it keeps only as pickles."""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from portolan.backends._artefact import Artefact, explained, other
from portolan.backends._convert import EXACT, foreign_type, free_axis, verify
from portolan.core.backend import Backend, Executable, Support, Tensors
from portolan.core.model import Model
from portolan.core.silence import runtime
from portolan.core.target import Target
from portolan.errors import UnsupportedOperator

if TYPE_CHECKING:
    import numpy as np

_TYPES = ("float32", "float64", "int32", "int64", "uint8", "int8", "bool")
_LACKS = (r"op='?([\w.]+)'? (?:is )?not supported", r"([A-Z]\w+) is not (?:supported|implemented)")
#: Names that distributions give clang, the newest last.
_CLANGS = ("clang", *(f"clang-{n}" for n in range(14, 24)))
#: The first clang that was seen to take all of it: 14 reads none of its pointers, 16 misses declarations.
_READS_LLVM = 19
#: Operators that its front end lacks, or computes wrongly.
_LACKING = ("LSTM", "GRU", "RNN")
#: Elements up to which a list of whole numbers may be sizes or axes, and sets of such lists that runs are kept for.
_FEW, _KEPT = 8, 8


@dataclass
class _Run:
    """A recording, and what the lists hold in it."""

    call: Callable[..., list[Any]]
    constants: dict[str, Any] = field(default_factory=dict)


class Replay(Executable):
    """A recorded run: the first call traces, the second records, later ones replay into the same buffers.

    Sizes and axes that are inputs become part of a recording, so there is one for each set of them.
    """

    def __init__(self, artefact: Artefact) -> None:
        # Its disk cache would hide a missing compiler, and leave pickles in the user's home.
        clang = _clang() or "clang"
        os.environ.update(DEV=f"CPU:{_renderer(clang)}", CACHELEVEL="0", CC=clang)
        with explained("tinygrad", artefact.path, *_LACKS), artefact.unpacked() as path:
            tinygrad = runtime("tinygrad")
            runner = runtime("tinygrad.nn.onnx").OnnxRunner(str(path))
        self._tensor, self._lock = tinygrad.Tensor, threading.Lock()
        self._record, self._refused = tinygrad.TinyJit, runtime("tinygrad.engine.jit").JitError
        self._runner, self._records = runner, OrderedDict[tuple[bytes, ...], _Run]()
        self._artefact = artefact

    def run(self, inputs: Tensors) -> dict[str, np.ndarray]:
        """Runs once; the buffers are copied before another call may enter."""
        import numpy as np

        signature = self._artefact.signature
        with self._lock, explained("tinygrad", self._artefact.path, *_LACKS, doing="run"):
            names = [spec.name for spec in signature.inputs]
            given = {name: self._tensor(np.array(inputs[name], order="C")).realize() for name in names}
            values = self._replayed(_lists(inputs), given)
            return {
                spec.name: np.array(value.numpy(), dtype=spec.dtype)
                for spec, value in zip(signature.outputs, values, strict=True)
            }

    def _replayed(self, lists: tuple[bytes, ...], given: dict[str, Any]) -> list[Any]:
        """The outputs, by the recording for these lists; what cannot be recorded is traced each time."""
        if lists not in self._records:
            self._records[lists] = _Run(self._record(self._plain))
            if len(self._records) > _KEPT:
                self._records.popitem(last=False)
        self._records.move_to_end(lists)
        run = self._records[lists]
        # Its front end takes lists for the same as long as it lives.
        self._runner._python_const_cache = run.constants
        try:
            return list(run.call(**given))
        except self._refused:
            run.call = self._plain
            return self._plain(**given)

    def _plain(self, **given: Any) -> list[Any]:
        return [value.contiguous().realize() for value in self._runner(given).values()]

    def save(self, folder: Path) -> None:
        """Writes the graph; it is compiled again where it is loaded."""
        self._artefact.save(folder)

    def facts(self) -> dict[str, Any]:
        """The device that it was told to use."""
        return {"device": "cpu", "precision": "f32"}

    def close(self) -> None:
        """Drops what was recorded."""
        self._records.clear()
        self._runner = None


def _lists(inputs: Tensors) -> tuple[bytes, ...]:
    """What inputs hold that may be sizes or axes."""
    few = (value for value in inputs.values() if value.ndim <= 1 and value.size <= _FEW)
    return tuple(value.tobytes() for value in few if value.dtype.kind in "iub")


class Tinygrad(Backend):
    """tinygrad on the CPU through clang. Ten and more times slower than the others here."""

    name = "tinygrad"
    distributions = ("tinygrad",)
    module = "tinygrad"
    fix = "portolan env add tinygrad"

    def probe(self, target: Target) -> Support:
        """Besides the package: clang, which compiles its kernels; gcc does not do."""
        support = super().probe(target)
        if support.ready and _clang() is None:
            reason = "tinygrad compiles its kernels with clang, which is not on the PATH"
            return Support(False, support.version, reason, "apt-get install clang")
        return support

    def refuse(self, model: Model, target: Target) -> str | None:
        """Besides the features: recurrent operators, free sizes, and element types that it has none of."""
        if lacking := _lacking(model):
            return f"`tinygrad` has no operator `{lacking}`"
        refused = super().refuse(model, target) or free_axis("tinygrad", model)
        return refused or foreign_type("tinygrad", model, *_TYPES)

    def compile(self, model: Model, target: Target) -> Replay:
        """Traces `model`, and compares it with the original.

        Raises:
            UnsupportedOperator: one that its front end is known to lack.
        """
        del target
        if lacking := _lacking(model):
            reason = f"`tinygrad` has no operator `{lacking}`"
            raise UnsupportedOperator(reason, hint=other("tinygrad"), where=str(model.path))
        executable = Replay(Artefact.of(model))
        verify("tinygrad", model, executable, EXACT)
        return executable

    def load(self, folder: Path) -> Replay:
        """Traces what was saved."""
        return Replay(Artefact.open(folder))


def _lacking(model: Model) -> str | None:
    """An operator that is known to be missing: recurrent ones, and those of domains other than ONNX and Microsoft."""
    foreign = (name for name in model.operators if "." in name and not name.startswith("com.microsoft."))
    return next((name for name in (*_LACKING, *foreign) if name in model.operators), None)


def _clang() -> str | None:
    """The compiler: what CC names if that is a clang, else the newest on the PATH."""
    given = os.environ.get("CC", "")
    if "clang" in given and shutil.which(given):
        return given
    return next((name for name in reversed(_CLANGS) if shutil.which(name)), None)


def _renderer(clang: str) -> str:
    """What the compiler is given: LLVM's language, where it takes what tinygrad writes in it, or C."""
    try:
        said = subprocess.run([clang, "-dumpversion"], capture_output=True, text=True, timeout=60, check=False).stdout
    except (OSError, subprocess.TimeoutExpired):
        return "CLANG"  # which will say what is missing
    major = said.partition(".")[0].strip()
    return "LLVM" if major.isdigit() and int(major) >= _READS_LLVM else "CLANG"


tinygrad = Tinygrad()
