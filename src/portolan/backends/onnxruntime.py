"""ONNX Runtime: the default backend. It has every operator, and runs the same file everywhere.

On NVIDIA's GPUs it runs where the package `onnxruntime-gpu` is; see `portolan.backends._ort_gpu`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from portolan.backends import _ort_gpu
from portolan.backends._artefact import Artefact, all_cores, demand, explained
from portolan.backends._blocked import FEATURE as WINOGRAD
from portolan.backends._blocked.load import rewritten
from portolan.backends._cuda import demand_able
from portolan.backends._ort_gpu import LACKS, Precision
from portolan.core import interpreters
from portolan.core.backend import CPU, Backend, Executable, Exploit, Support, Tensors
from portolan.core.extensions import FEATURE
from portolan.core.model import Model
from portolan.core.native import registered
from portolan.core.schema import Knob, cores
from portolan.core.silence import runtime
from portolan.core.target import Target

if TYPE_CHECKING:
    import numpy as np

Device = Literal["cpu", "cuda", "tensorrt"]
Level = Literal["all", "extended", "basic", "disabled"]
#: Without one of these, 8-bit products are emulated and slower than f32.
_DOT = ("avx512_vnni", "avx_vnni", "asimddp", "i8mm")
_STORED = ("weights:int8", "weights:int4", "weights:int2", "float16", "bfloat16")
_PROVIDER = _ort_gpu.PROVIDERS[CPU]
#: The same runtime, with code for GPUs too. Where both are installed, the files are those that came last; which they
#: are changes nothing on the processor.
_FLAVOURS = ("onnxruntime-gpu", "onnxruntime")
_PRECISIONS = {"cpu": ("f32",), "cuda": ("f32", "tf32"), "tensorrt": ("f32", "tf32", "f16")}


class Session(Executable):
    """An inference session on the CPU. `InferenceSession.run` may be called from several threads at once."""

    def __init__(self, artefact: Artefact, threads: int, level: Level, spinning: bool) -> None:
        ort = runtime("onnxruntime")
        settings = ort.SessionOptions()
        settings.intra_op_num_threads = threads
        name = _level(level)
        settings.graph_optimization_level = getattr(ort.GraphOptimizationLevel, f"ORT_{name}")
        settings.add_session_config_entry("session.intra_op.allow_spinning", str(int(spinning)))
        settings.log_severity_level = 3  # errors; warnings about the graph's style would fill a worker's log
        with explained("onnxruntime", artefact.path, *LACKS), artefact.unpacked() as path:
            self._operators = artefact.operators(path)
            libraries = [(kernel.domain, home.file(kernel)) for kernel, home in self._operators]
            registered(settings, libraries)
            kernels = [kernel for kernel, _ in self._operators] if level == "all" else []
            with rewritten(path, kernels, libraries) as self._blocked:
                if self._blocked is not None:
                    self._blocked.give(settings)
                given = path if self._blocked is None else self._blocked.path
                self._session = ort.InferenceSession(str(given), settings, providers=[_PROVIDER])
        # `InferenceSession.run` looks at its arguments in Python and hands them on, which small models feel. What it
        # looks for is found behind it too, or cannot be here, where there is no other provider to fall back to.
        self._call = getattr(self._session, "_sess", self._session).run
        self._artefact = artefact
        self._names = list(artefact.outputs)
        asked = {"providers": [_PROVIDER], "threads": threads, "graph_optimization": name}
        demand("onnxruntime", asked, self.facts())

    def run(self, inputs: Tensors) -> dict[str, np.ndarray]:
        """Runs once; the runtime allocates each call's outputs anew."""
        feeds = inputs if isinstance(inputs, dict) else dict(inputs)
        return dict(zip(self._names, self._call(self._names, feeds, None), strict=True))

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
            **({} if self._blocked is None else {"winograd": self._blocked.layers}),
        }

    def close(self) -> None:
        """Drops the session and its threads."""
        self._session = self._call = self._blocked = None


def _level(level: Level) -> str:
    return "DISABLE_ALL" if level == "disabled" else f"ENABLE_{level.upper()}"


class OnnxRuntime(Backend):
    """ONNX Runtime: its CPU provider, and on NVIDIA's GPUs CUDA's and TensorRT's. On a GPU we never ran it yet."""

    name = "onnxruntime"
    module = "onnxruntime"
    fix = "pip install onnxruntime"
    exploits = (
        Exploit("int8:dynamic", _DOT),
        Exploit("int8:static", _DOT),
        # A GPU computes in floats of 16 bits; a processor only unpacks them.
        Exploit("float16", ("cuda_f16",)),
        # Products stay in codes (MatMulNBits). Few rows gain speed by it, many lose, and convolutions are unpacked on
        # every run: what is sure is the size. Floats of 16 bits are unpacked when the file is loaded.
        *(Exploit(feature, gain="size") for feature in _STORED),
        Exploit("length:trimmed"),
        Exploit(FEATURE),
        # It keeps channels in blocks at its highest level alone.
        Exploit(WINOGRAD, options={"graph_optimization": ("all",), "device": (CPU,)}),
    )

    @property
    def distributions(self) -> tuple[str, ...]:  # type: ignore[override]
        """The package that is installed here: with code for GPUs, or without."""
        return next(((name,) for name in _FLAVOURS if interpreters.distribution(self.name, name)), _FLAVOURS[-1:])

    def devices(self, target: Target) -> Mapping[str, Support]:
        """By the package's files: whether it has code for GPUs, for which CUDA, and finds TensorRT."""
        return _ort_gpu.devices(self.name, target)

    def lacks(self, options: Mapping[str, Any], target: Target) -> Support | None:
        """Besides the device: only TensorRT makes f16 of f32, and a processor computes in f32."""
        device, precision = options["device"], options["precision"]
        if precision not in _PRECISIONS[device]:
            return Support(False, reason=f"precision `{precision}` is not of device `{device}`")
        return super().lacks(options, target)

    def compile(
        self,
        model: Model,
        target: Target,
        *,
        device: Annotated[
            Device,
            Knob(
                needs={"cuda": ("cuda",), "tensorrt": ("cuda",)},
                help="What it runs on: the processor, or the first GPU by CUDA or TensorRT.",
            ),
        ] = "cpu",
        precision: Annotated[
            Precision,
            Knob(
                needs={"tf32": ("cuda_tf32",), "f16": ("cuda_f16",)},
                when={"device": ("cuda", "tensorrt")},
                help="A GPU's arithmetic: tf32 and f16 (TensorRT alone) are not exact.",
            ),
        ] = "f32",
        graph_optimization: Annotated[
            Level,
            Knob(
                when={"device": ("cpu", "cuda")},
                values=("all", "basic", "disabled"),
                help="How much the graph is rewritten: convolutions need all, some transformers are faster with less.",
            ),
        ] = "all",
        threads: Annotated[
            int,
            Knob(values=cores, when={"device": ("cpu",)}, help="Threads of one inference; 0 means all cores."),
        ] = 0,
        spinning: Annotated[
            bool, Knob(search=False, help="Whether idle threads spin; turn it off where processes share cores.")
        ] = True,
    ) -> Session | _ort_gpu.Session:
        """Loads `model` for `target`'s cores, or its GPU.

        Raises:
            NoBackend: the device is not there, or the package has no code for it.
        """
        demand_able(self, {"device": device, "precision": precision}, target)
        if device == CPU:
            return Session(Artefact.of(model), threads or target.cores, graph_optimization, spinning)
        return _ort_gpu.compiled(Artefact.of(model), device, precision, _level(graph_optimization))

    def load(
        self,
        folder: Path,
        *,
        device: Device = "cpu",
        precision: Precision = "f32",
        graph_optimization: Level = "all",
        threads: int = 0,
        spinning: bool = True,
    ) -> Session | _ort_gpu.Session:
        """Loads what was saved, for this machine's cores, or its GPU."""
        artefact = Artefact.open(folder)
        if device == CPU:
            return Session(artefact, threads or all_cores(), graph_optimization, spinning)
        return _ort_gpu.opened(folder, artefact, device, precision, _level(graph_optimization))


onnxruntime = OnnxRuntime()
