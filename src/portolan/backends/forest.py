"""Ensembles of decision trees in C of our own, called past what general runtimes do for each call."""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import json
import platform
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from portolan.backends._artefact import Artefact, all_cores, explained
from portolan.core.backend import Backend, Executable, Support, Tensors
from portolan.core.files import sha256, write_whole
from portolan.core.folders import cache_folder
from portolan.core.model import Model
from portolan.core.native import Library, Pool, address
from portolan.core.running import cc, compiled
from portolan.core.schema import Knob, cores
from portolan.core.silence import runtime
from portolan.core.target import Target
from portolan.errors import ModelError, NoBackend, VerificationFailed

if TYPE_CHECKING:
    import numpy as np

    from portolan.backends._forest.graph import Graph

_SOURCE = Path(__file__).parent / "_forest" / "forest.c"
#: For every processor of a kind, since trees leave vectors nothing to do: what was compiled here runs where it is sent.
_FLAGS = ("-O3", "-shared", "-fPIC", "-w", "-lm")
_SECONDS = 60.0
_SYMBOLS = ("rows", "features", "sums")
#: In a saved folder: the kernel, and what is said of it.
_LIBRARY, _ABOUT = "forest.so", "forest.json"
#: Rows from which on threads share them: waking one takes as long as some two hundred of a usual ensemble.
_SHARED = 512
#: Where the first field of NumPy's arrays is, which says where the numbers are.
_HEAD = object.__basicsize__


class _Fixed(ctypes.Structure):
    """`Forest` in forest.c."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("nodes", "trees", "votes", "offset", "scale", "base", "names")),
        *((name, ctypes.c_int64) for name in ("features", "count", "sums", "transform", "label", "missing")),
    )


class Trees(Executable):
    """One ensemble. It may be called from several threads at once."""

    def __init__(self, artefact: Artefact, threads: int, library: Path) -> None:
        import numpy as np

        from portolan.backends._forest.graph import Graph

        with explained("forest", artefact.path), artefact.unpacked() as path:
            self._graph = Graph.of(runtime("onnx").load(str(path)), artefact.signature)
        self._artefact, self._path, self._np = artefact, library, np
        self._library = Library(library, "kernel_forest", _SYMBOLS)
        self._now = ctypes.CDLL(str(library)).forest_now
        self._now.argtypes = [*[ctypes.c_void_p] * 4, *[ctypes.c_int64] * 2]
        self._fixed = _fixed(self._graph)
        self._where = ctypes.addressof(self._fixed)
        self._pool = Pool(threads)

    def run(self, inputs: Tensors) -> dict[str, np.ndarray]:
        """Runs once."""
        np, graph = self._np, self._graph
        x = np.ascontiguousarray(inputs[graph.input])
        if x.ndim != 2 or x.shape[1] != graph.features or x.dtype != np.float32:
            self._artefact.signature.check(inputs)
        rows = len(x)
        scores = np.empty((rows, graph.ensemble.outputs), np.float32)
        labels = np.empty(rows, np.int64) if len(graph.ensemble.names) else scores
        if rows >= _SHARED and self._pool.threads > 1:
            self._shared(x, scores, labels)
        elif not self._now(self._where, id(x), id(scores), id(labels), _HEAD, rows):
            raise MemoryError("no memory for sums")
        return {name: labels if kind == "label" else scores for name, kind in graph.outputs.items()}

    def _shared(self, x: np.ndarray, scores: np.ndarray, labels: np.ndarray) -> None:
        sizes = {"rows": len(x), "features": self._graph.features, "sums": len(self._graph.ensemble.base)}
        bound = self._library.bound(sizes)
        places = (ctypes.c_void_p * 4)(self._where, *(address(array) for array in (x, scores, labels)))
        self._pool.share(bound, places)

    def save(self, folder: Path) -> None:
        """Writes the graph, and the kernel for machines that have no compiler."""
        self._artefact.save(folder)
        (folder / _LIBRARY).write_bytes(self._path.read_bytes())
        about = {"kernel": _kernel(), "sha256": sha256(self._path)}
        (folder / _ABOUT).write_text(json.dumps(about, indent=1, sort_keys=True), encoding="utf-8")

    def facts(self) -> dict[str, Any]:
        """Comparisons are of float32, and sums of float64."""
        return {"device": "cpu", "precision": "f32", "threads": self._pool.threads}

    def close(self) -> None:
        """Ends the threads."""
        self._pool.close()


def _fixed(graph: Graph) -> _Fixed:
    """What the kernel reads of an ensemble; whoever holds it holds the graph too."""
    trees = graph.ensemble
    arrays = (trees.nodes, trees.trees, trees.votes, graph.offset, graph.scale, trees.base, trees.names)
    places = (None if array is None else address(array) for array in arrays)
    return _Fixed(
        *places, graph.features, len(trees.trees), len(trees.base), trees.transform, trees.label, trees.missing
    )


def _kernel(*more: str) -> str:
    """What the kernel is: its source, how it is compiled, and for which kind of processor."""
    said = "\0".join((_SOURCE.read_text(encoding="utf-8"), *_FLAGS, platform.machine(), *more))
    return hashlib.sha256(said.encode()).hexdigest()[:24]


def _made() -> Path:
    """The kernel, from the cache or compiled now.

    Raises:
        NoBackend: there is no compiler.
        CompilerError: it cannot compile it.
    """
    argv = cc("`forest`")
    path = cache_folder() / "kernels" / "forest" / f"{_kernel(*argv)}.so"
    if not path.is_file():
        write_whole(path, compiled([*argv, *_FLAGS], _SOURCE.read_text(encoding="utf-8"), ".c", _SECONDS))
    return path


def _brought(folder: Path) -> Path | None:
    """The kernel that was saved, if it is for this kind of processor and this Portolan.

    Raises:
        ModelError: nothing was saved.
        VerificationFailed: it is not what was written.
    """
    try:
        about = json.loads((folder / _ABOUT).read_bytes())
        if about["kernel"] != _kernel():
            return None
        if sha256(folder / _LIBRARY) == about["sha256"]:
            return folder / _LIBRARY
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"`{folder}` holds no compiled trees: {error}", hint="compile the model again") from error
    raise VerificationFailed(f"`{folder / _LIBRARY}` is not what was compiled", hint="compile the model again")


class Forest(Backend):
    """Trees of decisions: what a gradient-boosted classifier, a random forest or a single tree becomes in ONNX."""

    name = "forest"
    distributions = ("portolan",)
    module = "onnx"
    fix = "pip install onnx"

    def probe(self, target: Target) -> Support:
        """Ready where there is a C compiler."""
        try:
            cc("`forest`")
        except NoBackend as error:
            return Support(False, reason=error.message, fix=error.hint)
        return super().probe(target)

    def refuse(self, model: Model, target: Target) -> str | None:
        """Besides the features: all that is no ensemble of trees, or has other tensors than rows and their scores."""
        from portolan.backends._forest.ensemble import TREES
        from portolan.backends._forest.graph import BESIDES, unfit

        if lacking := next((name for name in sorted(model.operators) if name not in (*TREES, *BESIDES)), None):
            return f"`forest` has no operator `{lacking}`"
        if not any(model.operators.get(name) for name in TREES):
            return "`forest` runs ensembles of decision trees, and the model has none"
        return unfit(model.signature) or super().refuse(model, target)

    def compile(
        self,
        model: Model,
        target: Target,
        *,
        threads: Annotated[int, Knob(values=cores, help="Threads of many rows; 0 means all cores.")] = 0,
    ) -> Trees:
        """Reads the trees of `model`, and compiles the kernel where that was not done yet.

        Raises:
            UnsupportedOperator: it is more than an ensemble behind a scaler, or an ensemble of another kind.
        """
        return Trees(Artefact.of(model), threads or target.cores, _made())

    def load(self, folder: Path, *, threads: int = 0) -> Trees:
        """Loads what was saved; the kernel is compiled anew where what was saved is for another kind of system."""
        artefact, count, brought = Artefact.open(folder), threads or all_cores(), _brought(folder)
        if brought is not None:
            with contextlib.suppress(OSError):  # another C library's, say
                return Trees(artefact, count, brought)
        return Trees(artefact, count, _made())


forest = Forest()
