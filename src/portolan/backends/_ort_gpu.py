"""ONNX Runtime on NVIDIA's GPUs: by its CUDA provider, or by TensorRT with CUDA behind it.

ONNX Runtime falls back to the processor without an error wherever a provider cannot be loaded, and takes single nodes
that a provider lacks to the processor. Both are failures here: `Session` compares what it got with what was asked for.
"""

from __future__ import annotations

import contextlib
import ctypes
import re
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from portolan.backends import _cuda
from portolan.backends._artefact import Artefact, demand, explained
from portolan.core import flops, interpreters
from portolan.core.backend import Executable, Support, Tensors
from portolan.core.silence import environment, runtime
from portolan.core.target import Target
from portolan.errors import ModelError, NoBackend, PortolanError

if TYPE_CHECKING:
    import numpy as np

Precision = Literal["f32", "tf32", "f16"]
#: ONNX Runtime's name for what runs on a device.
PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider", "tensorrt": "TensorrtExecutionProvider"}
#: What ONNX Runtime says of an operator that it lacks.
LACKS = (
    r"Fatal error: (\S+?)\(-?\d+\) is not a registered function/op",
    r"No Op registered for (\S+)",
    r"Could not find an implementation for (\S+?)\(",
)
#: Both packages are one folder, so one has to go before the other comes.
FIX = "{python} -m pip uninstall -y onnxruntime && {python} -m pip install 'onnxruntime-gpu[cuda,cudnn]'"
_TENSORRT_FIX = "{python} -m pip install 'tensorrt-cu{cuda}=={tensorrt}.*'"
_ENGINES = "engines"
#: What ONNX Runtime says when not the model but the device is at fault.
_BROKEN = re.compile(
    r"install TensorRT libraries|install all dependencies|Failed to load library|driver version is insufficient"
    r"|no CUDA-capable device|CUDA failure (35|100|803|999)\b"
)
#: Where in its own source it says so.
_PLACE = re.compile(r"^\S+\.cc:\d+ .*?\) ")
_NEEDED = re.compile(rb"libnvinfer\.so\.(\d+)")
#: Domains whose operators every provider may have.
_STANDARD = ("", "ai.onnx", "ai.onnx.ml", "com.microsoft", "com.ms.internal.nhwc")


def devices(name: str, target: Target) -> dict[str, Support]:
    """Whether the package of the backend `name` can use the GPU of `target`, by CUDA and by TensorRT."""
    device, folder = _cuda.gpu(target), interpreters.folder(name, "onnxruntime")
    if device is None or folder is None:
        return {}
    fix = FIX.format(python=_cuda.python(name))
    built = _cuda.built_for(folder / "capi" / "build_and_package_info.py")
    if built is None or not (folder / "capi" / "libonnxruntime_providers_cuda.so").is_file():
        lacking = Support(False, reason="the package `onnxruntime` has no code for GPUs", fix=fix)
        return {"cuda": lacking, "tensorrt": lacking}
    major = built.partition(".")[0]
    cuda = _cuda.driven("onnxruntime-gpu", built, device)
    if cuda.ready and (gone := _cuda.missing(name, f"libcublasLt.so.{major}", "libcudnn.so.9")):
        wanted = f"{_cuda.python(name)} -m pip install 'onnxruntime-gpu[cuda,cudnn]'"
        cuda = Support(False, reason=f"`{gone}` is not installed, which `onnxruntime-gpu` needs", fix=wanted)
    return {"cuda": cuda, "tensorrt": _tensorrt(name, folder, major) if cuda.ready else cuda}


def _tensorrt(name: str, folder: Path, cuda: str) -> Support:
    provider = folder / "capi" / "libonnxruntime_providers_tensorrt.so"
    if not provider.is_file():
        return Support(False, reason="the package `onnxruntime-gpu` has no code for TensorRT")
    found = _NEEDED.search(provider.read_bytes())
    major = found[1].decode() if found else "10"
    if (gone := _cuda.missing(name, f"libnvinfer.so.{major}", f"libnvonnxparser.so.{major}")) is None:
        return Support(True)
    fix = _TENSORRT_FIX.format(python=_cuda.python(name), cuda=cuda, tensorrt=major)
    return Support(False, reason=f"`{gone}` is not installed: TensorRT {major}, under NVIDIA's own licence", fix=fix)


class Session(Executable):
    """An inference session on the first GPU. It may be called from several threads at once.

    `run` begins and ends with NumPy arrays in the processor's memory, so its time holds the copies to the GPU and
    back, and the wait until the last of them is done. A caller that keeps tensors on the GPU would see less.

    TensorRT builds an engine for the very sizes of the model, which takes minutes. Its cache knows an engine by the
    names of files and nodes, not by weights or sizes, so each model has a cache of its own: a folder beside the graph,
    which `save` writes too. Another GPU or another version of TensorRT builds again as it loads.
    """

    def __init__(
        self, artefact: Artefact, device: str, precision: Precision, level: str, built: Path | None = None
    ) -> None:
        self._undo = contextlib.ExitStack()
        with contextlib.ExitStack() as undo:
            ort = _loaded(device)
            self._device, self._precision = device, precision
            work = Path(undo.enter_context(tempfile.TemporaryDirectory(prefix="portolan-ort-")))
            self._engines = work / _ENGINES
            self._engines.mkdir()
            self._known = _linked(built, self._engines)
            if device == "tensorrt":
                with explained("onnxruntime", artefact.path):
                    artefact = _named(artefact, work)
            providers = _providers(device, precision, self._engines)
            # TensorRT has no switch of its own for TF32, which it uses for f32 unless the whole process must not.
            quiet = {} if precision == "tf32" else {"NVIDIA_TF32_OVERRIDE": "0"}
            with (
                environment(**quiet),
                explained("onnxruntime", artefact.path, *LACKS),
                artefact.unpacked() as path,
                _blamed(device),
            ):
                self._session = ort.InferenceSession(
                    str(path), _settings(ort, level), providers=providers, enable_fallback=0
                )
            self._artefact, self._names = artefact, list(artefact.outputs)
            demand("onnxruntime", {"device": device}, self.facts())
            demand_placed(self._session, device)
            self._undo = undo.pop_all()

    def run(self, inputs: Tensors) -> dict[str, np.ndarray]:
        """Runs once, copies included."""
        import numpy as np

        binding = self._session.io_binding()
        for name, value in inputs.items():
            binding.bind_cpu_input(name, np.asarray(value, order="C"))
        for name in self._names:
            binding.bind_output(name, "cuda", 0)
        self._session.run_with_iobinding(binding)
        binding.synchronize_outputs()
        return dict(zip(self._names, binding.copy_outputs_to_cpu(), strict=True))

    def save(self, folder: Path) -> None:
        """Writes the graph, and the engines that TensorRT built for this GPU."""
        self._artefact.save(folder)
        if self._device == "tensorrt":
            shutil.copytree(self._engines, folder / _ENGINES)

    def facts(self) -> dict[str, Any]:
        """What the session answers when asked for its providers and for where its nodes run."""
        providers = list(self._session.get_providers())
        names = {provider: device for device, provider in PROVIDERS.items()}
        engines = {path.name for path in self._engines.glob("*.engine")}
        return {
            "device": names.get(providers[0], providers[0]),
            "precision": self._precision,
            "providers": providers,
            "nodes": {provider: sum(found.values()) for provider, found in _placed(self._session).items()},
            **({"engines": len(engines), "built": len(engines - self._known)} if self._device == "tensorrt" else {}),
        }

    def close(self) -> None:
        """Drops the session, its memory on the GPU, and the folder of engines."""
        self._session = None
        self._undo.close()


def compiled(artefact: Artefact, device: str, precision: Precision, level: str) -> Session:
    """A session, and for TensorRT its engines.

    Raises:
        ModelError: TensorRT was asked for, and the model has free sizes: it would build again for each new one.
    """
    free = [spec.name for spec in artefact.signature.inputs if any(isinstance(size, str) for size in spec.shape)]
    if device == "tensorrt" and free:
        raise ModelError(
            f"TensorRT builds its engine for fixed sizes, and those of `{free[0]}` are free",
            hint="give them: --shapes, or use the device `cuda`",
        )
    return Session(artefact, device, precision, level)


def opened(folder: Path, artefact: Artefact, device: str, precision: Precision, level: str) -> Session:
    """What `Session.save` wrote, without building engines where this GPU has them."""
    return Session(artefact, device, precision, level, folder / _ENGINES)


def demand_placed(session: Any, device: str) -> None:
    """Refuses a session whose work is done elsewhere than on `device`.

    Nodes that compute sizes belong on the processor. Those that do the model's arithmetic do not: one product there
    costs two copies, and its time would be reported as the GPU's.

    Raises:
        PortolanError: a product, or most of the nodes, run elsewhere.
    """
    placed = _placed(session)
    here = placed.pop(PROVIDERS[device], Counter[str]())
    strays = {provider: sorted(name for name in found if _works(name)) for provider, found in placed.items()}
    total = sum(here.values()) + sum(sum(found.values()) for found in placed.values())
    for provider, names in strays.items():
        if names:
            listed = ", ".join(f"`{name}`" for name in names[:3])
            raise PortolanError(
                f"`onnxruntime` was asked for device `{device}` and runs {listed} with `{provider}`",
                hint="use another device: this one has no code for that operator or its types",
            )
    if total and 2 * sum(here.values()) < total:
        raise PortolanError(
            f"`onnxruntime` was asked for device `{device}` and runs {sum(here.values())} of {total} nodes there",
            hint="use another device: this one has no code for most of the model",
        )


def _works(name: str) -> bool:
    """Whether an operator does a model's arithmetic: products, windows, trees, and what we do not know."""
    domain = name.rpartition(".")[0]
    return name in flops.COUNTED or "TreeEnsemble" in name or domain not in _STANDARD


def _placed(session: Any) -> dict[str, Counter[str]]:
    """How often each operator runs with which provider.

    Raises:
        NoBackend: a version of ONNX Runtime that does not say.
    """
    try:
        groups = session.get_provider_graph_assignment_info()
    except AttributeError as error:
        raise NoBackend(
            "this version of `onnxruntime-gpu` does not say where nodes run", hint="pip install -U onnxruntime-gpu"
        ) from error
    found: dict[str, Counter[str]] = {}
    for group in groups:
        for node in group.get_nodes():
            plain = node.domain in ("", "ai.onnx")
            name = node.op_type if plain else f"{node.domain}.{node.op_type}"
            found.setdefault(group.ep_name, Counter())[name] += 1
    return found


def _loaded(device: str) -> Any:
    """ONNX Runtime, with the libraries that pip installed beside it in memory before it looks for them.

    Raises:
        NoBackend: its package has no code for `device`.
    """
    ort = runtime("onnxruntime")
    if PROVIDERS[device] not in ort.get_available_providers():
        raise NoBackend(
            f"`onnxruntime` was asked for device `{device}`, and the package here has no `{PROVIDERS[device]}`",
            hint=FIX.format(python=_cuda.python("onnxruntime")),
        )
    with contextlib.redirect_stdout(sys.stderr):  # it prints what it does not find, which may well be elsewhere
        ort.preload_dlls()
    if device == "tensorrt":
        folder = interpreters.folder("onnxruntime", "tensorrt_libs")
        for path in sorted(folder.glob("libnv*.so.*")) if folder is not None else ():
            with contextlib.suppress(OSError):  # one that is not for this machine; the session says what it misses
                ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
    return ort


@contextlib.contextmanager
def _blamed(device: str) -> Iterator[None]:
    """Tells a provider that cannot start from a model that cannot be read."""
    try:
        yield
    except Exception as error:
        if not _BROKEN.search(str(error)):
            raise
        told = _PLACE.sub("", str(error).strip().splitlines()[0])[:300]
        raise NoBackend(
            f"`onnxruntime` cannot start on device `{device}`: {told}", hint="`portolan doctor` says what is missing"
        ) from error


def _settings(ort: Any, level: str) -> Any:
    settings = ort.SessionOptions()
    settings.graph_optimization_level = getattr(ort.GraphOptimizationLevel, f"ORT_{level}")
    settings.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    settings.use_deterministic_compute = True
    settings.log_severity_level = 3
    return settings


def _providers(device: str, precision: Precision, engines: Path) -> list[tuple[str, dict[str, str]]]:
    cuda = (PROVIDERS["cuda"], {"device_id": "0", "use_tf32": str(int(precision == "tf32"))})
    if device == "cuda":
        return [cuda]
    options = {
        "device_id": "0",
        "trt_fp16_enable": str(int(precision == "f16")),
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": str(engines),
    }
    return [(PROVIDERS["tensorrt"], options), cuda]


def _named(artefact: Artefact, work: Path) -> Artefact:
    """The artefact as it is when saved: TensorRT's cache knows an engine by the file's name."""
    place = work / "model"
    place.mkdir()
    artefact.save(place)
    return Artefact.open(place)


def _linked(built: Path | None, engines: Path) -> set[str]:
    """Links the engines that were saved into a folder that may be written to: what is shipped stays as it is."""
    files: Iterator[Path] = built.iterdir() if built is not None and built.is_dir() else iter(())
    names = set()
    for path in files:
        (engines / path.name).symlink_to(path.resolve())
        names.add(path.name)
    return names
