"""ONNX Runtime: the default backend. It has every operator, and runs the same file everywhere."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from portolan.backends._artefact import Artefact, all_cores, demand, explained
from portolan.core.backend import Backend, Executable, Exploit, Tensors
from portolan.core.extensions import FEATURE
from portolan.core.model import Model
from portolan.core.native import registered
from portolan.core.schema import Knob, cores
from portolan.core.silence import runtime
from portolan.core.target import Target

if TYPE_CHECKING:
    import numpy as np

Level = Literal["all", "extended", "basic", "disabled"]
#: Without one of these, 8-bit products are emulated and slower than f32.
_DOT = ("avx512_vnni", "avx_vnni", "asimddp", "i8mm")
_STORED = ("weights:int8", "weights:int4", "weights:int2", "float16", "bfloat16")
_PROVIDER = "CPUExecutionProvider"
_LACKS = (
    r"Fatal error: (\S+?)\(-?\d+\) is not a registered function/op",
    r"No Op registered for (\S+)",
    r"Could not find an implementation for (\S+?)\(",
)


class Session(Executable):
    """An inference session on the CPU. `InferenceSession.run` may be called from several threads at once."""

    def __init__(self, artefact: Artefact, threads: int, level: Level, spinning: bool) -> None:
        ort = runtime("onnxruntime")
        settings = ort.SessionOptions()
        settings.intra_op_num_threads = threads
        name = "DISABLE_ALL" if level == "disabled" else f"ENABLE_{level.upper()}"
        settings.graph_optimization_level = getattr(ort.GraphOptimizationLevel, f"ORT_{name}")
        settings.add_session_config_entry("session.intra_op.allow_spinning", str(int(spinning)))
        settings.log_severity_level = 3  # errors; warnings about the graph's style would fill a worker's log
        with explained("onnxruntime", artefact.path, *_LACKS), artefact.unpacked() as path:
            self._operators = artefact.operators(path)
            registered(settings, [(kernel.domain, home.file(kernel)) for kernel, home in self._operators])
            self._session = ort.InferenceSession(str(path), settings, providers=[_PROVIDER])
        self._artefact = artefact
        self._names = list(artefact.outputs)
        asked = {"providers": [_PROVIDER], "threads": threads, "graph_optimization": name}
        demand("onnxruntime", asked, self.facts())

    def run(self, inputs: Tensors) -> dict[str, np.ndarray]:
        """Runs once; the runtime allocates each call's outputs anew."""
        return dict(zip(self._names, self._session.run(self._names, dict(inputs)), strict=True))

    def save(self, folder: Path) -> None:
        """Writes the graph: an optimised file would be tied to this machine and loads no faster."""
        self._artefact.save(folder, self._operators)

    def facts(self) -> dict[str, Any]:
        """What the session answers when asked for its providers and options."""
        settings = self._session.get_session_options()
        return {
            "device": "cpu",
            "precision": "f32",
            "threads": settings.intra_op_num_threads,
            "providers": list(self._session.get_providers()),
            "graph_optimization": settings.graph_optimization_level.name.removeprefix("ORT_"),
        }

    def close(self) -> None:
        """Drops the session and its threads."""
        self._session = None


class OnnxRuntime(Backend):
    """ONNX Runtime's CPU provider."""

    name = "onnxruntime"
    distributions = ("onnxruntime",)
    module = "onnxruntime"
    fix = "pip install onnxruntime"
    exploits = (
        Exploit("int8:dynamic", _DOT),
        Exploit("int8:static", _DOT),
        # Products stay in codes (MatMulNBits). Few rows gain speed by it, many lose, and convolutions are unpacked on
        # every run: what is sure is the size. Floats of 16 bits are unpacked when the file is loaded.
        *(Exploit(feature, gain="size") for feature in _STORED),
        Exploit(FEATURE),
    )

    def compile(
        self,
        model: Model,
        target: Target,
        *,
        graph_optimization: Annotated[
            Level,
            Knob(
                values=("all", "basic", "disabled"),
                help="How much the graph is rewritten: convolutions need all, some transformers are faster with less.",
            ),
        ] = "all",
        threads: Annotated[int, Knob(values=cores, help="Threads of one inference; 0 means all cores.")] = 0,
        spinning: Annotated[
            bool, Knob(search=False, help="Whether idle threads spin; turn it off where processes share cores.")
        ] = True,
    ) -> Session:
        """Loads `model` for `target`'s cores."""
        return Session(Artefact.of(model), threads or target.cores, graph_optimization, spinning)

    def load(
        self, folder: Path, *, graph_optimization: Level = "all", threads: int = 0, spinning: bool = True
    ) -> Session:
        """Loads what was saved, for this machine's cores."""
        return Session(Artefact.open(folder), threads or all_cores(), graph_optimization, spinning)


onnxruntime = OnnxRuntime()
