"""PyTorch's AOTInductor: native code from the exported program beside the graph, or else from the graph itself.

Compiling takes 10 to 25 s and a C++ compiler. The option `compiler=eager` compiles nothing. On NVIDIA's GPUs
(`device=cuda`) a run starts and ends with arrays in the processor's memory, so its time holds both copies.
"""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import tempfile
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from portolan.backends import _torch_gpu
from portolan.backends._artefact import Artefact, all_cores, demand, explained
from portolan.backends._cuda import demand_able
from portolan.backends._exported import read_program
from portolan.backends._torch_gpu import Device
from portolan.backends._torch_graph import Eager, free_axes, imported
from portolan.core.backend import CPU, Backend, Executable, Support, Tensors
from portolan.core.model import Model
from portolan.core.schema import Knob
from portolan.core.silence import environment, runtime
from portolan.core.target import Target
from portolan.errors import ModelError, PortolanError, UsageError

if TYPE_CHECKING:
    import numpy as np

Precision = Literal["f32", "tf32", "bf16"]
Layout = Literal["channels_last", "contiguous"]
Compiler = Literal["inductor", "eager"]
_PACKAGE = "model.pt2"
_BF16 = {"cpu": ("avx512_bf16", "amx_bf16", "bf16"), "cuda": ("cuda_bf16",)}
#: Which capabilities run code for an instruction set; the ones that torch's own builds tell apart.
_RUN_BY = {"AVX512": ("AVX512",), "AVX2": ("AVX2", "AVX512")}
# Keys of what a package says about itself.
_PRECISION, _THREADS = "PORTOLAN_PRECISION", "PORTOLAN_THREADS"


class Package(Executable):
    """A loaded package. Its runner lets one thread in at a time, so `run` may be called from several."""

    def __init__(
        self,
        artefact: Artefact,
        device: Device,
        precision: Precision,
        threads: int,
        work: tempfile.TemporaryDirectory[str] | None,
    ) -> None:
        import numpy as np

        self._torch = runtime("torch")
        self._device = "cpu" if device == CPU else "cuda:0"
        if device != CPU:
            _torch_gpu.demand_gpu()
            _torch_gpu.compute_in(self._torch, precision)
        # The code only reads its inputs, so one that arrived in a read-only buffer needs no copy and no warning.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable", category=UserWarning)
        with explained("torch", artefact.path):
            # aoti_load_package would first compile seven programs with g++ to learn what this processor can do.
            place = (str(artefact.path), "model", False, 1, -1 if device == CPU else 0)
            self._runner = self._torch._C._aoti.AOTIModelPackageLoader(*place)
        self._metadata = self._runner.get_metadata()
        if device != CPU:
            _torch_gpu.check_gpu(self._metadata, self._torch.cuda.get_device_capability(0))
        check_processor(self._metadata, platform.machine(), self._torch.backends.cpu.get_cpu_capability())
        self._artefact, self._work = artefact, work
        self._threads = int(self._metadata.get(_THREADS, 0)) or all_cores()
        self._torch.set_num_threads(self._threads)
        self._inputs = tuple(spec.name for spec in artefact.signature.inputs)
        self._names = artefact.outputs
        self._contiguous, self._aliased = np.ascontiguousarray, np.may_share_memory
        asked = {"device": device, "precision": precision} | ({"threads": threads} if threads else {})
        demand("torch", asked, self.facts())

    def run(self, inputs: Tensors) -> dict[str, np.ndarray]:
        """Runs once. The code takes any array for a contiguous one, and hands back an input that it passes through."""
        arrays = [self._contiguous(inputs[name]) for name in self._inputs]
        # Both ways are copies only where there is a GPU, and the way back waits for it.
        given = [self._torch.from_numpy(a).to(self._device) for a in arrays]
        values = [v.cpu().numpy() for v in self._runner.run(given)]
        owned = (v.copy() if any(self._aliased(v, a) for a in arrays) else v for v in values)
        return dict(zip(self._names, owned, strict=True))

    def caller(self) -> Callable[[Tensors], dict[str, np.ndarray]]:
        """`run`, in a thread whose own OpenMP setting is made before the first call."""
        ready = False

        def run(inputs: Tensors) -> dict[str, np.ndarray]:
            nonlocal ready
            if not ready:
                self._torch.set_num_threads(self._threads)
                ready = True
            return self.run(inputs)

        return run

    def save(self, folder: Path) -> None:
        """Writes the package: native code for this processor and this version of torch."""
        self._artefact.save(folder)

    def facts(self) -> dict[str, Any]:
        """What the package says it was compiled for, and torch's thread count."""
        return {
            "device": self._metadata.get("AOTI_DEVICE_KEY"),
            "precision": self._metadata.get(_PRECISION),
            "threads": self._torch.get_num_threads(),
            "isa": self._metadata.get("AOTI_CPU_ISA"),
        }

    def close(self) -> None:
        """Drops the code and the folder it was compiled in."""
        self._runner = None
        if self._work is not None:
            self._work.cleanup()


def check_processor(metadata: Mapping[str, str], machine: str, capability: str) -> None:
    """Compares what a package was compiled for with this processor, before its first instruction kills the process.

    Args:
        metadata: what the package says about itself.
        machine: this processor's architecture.
        capability: the widest instructions it has: DEFAULT, AVX2, AVX512, ...

    Raises:
        PortolanError: the code would not run here.
    """
    wanted = metadata.get("AOTI_MACHINE", machine), (metadata.get("AOTI_CPU_ISA") or "none").split()[0]
    enough = capability in _RUN_BY.get(wanted[1], (capability,))
    if wanted[0] != machine or not enough:
        raise PortolanError(
            f"the package was compiled for `{' '.join(wanted)}`, this processor is `{machine} {capability}`",
            hint="compile the model again on this machine",
        )


class Torch(Backend):
    """AOTInductor on the CPU, and on NVIDIA's GPUs, where we never ran it yet."""

    name = "torch"
    distributions = ("torch",)
    module = "torch"
    fix = "pip install torch"
    heavy = True

    def unasked(self, model: Model) -> str | None:
        """Inductor seldom wins with a plain graph, and takes tens of seconds and a C++ compiler."""
        if model.program is not None:
            return None
        return "`torch` takes tens of seconds for a plain ONNX graph, so it has to be named: `--backend torch`"

    def refuse(self, model: Model, target: Target) -> str | None:
        """Besides the features: what the importer cannot read, where there is no exported program."""
        from portolan.importers.reading import refusal

        lacking = None if model.program is not None else refusal(self.name, model)
        return lacking or super().refuse(model, target)

    def devices(self, target: Target) -> Mapping[str, Support]:
        """By the package's files: whether it was built for GPUs, and has what Inductor compiles with."""
        return _torch_gpu.devices(self.name, target)

    def lacks(self, options: Mapping[str, Any], target: Target) -> Support | None:
        """Besides the device: what computes in bf16, and that only GPUs have tf32."""
        device, precision = options["device"], options["precision"]
        if device == CPU and precision == "tf32":
            return Support(False, reason="precision `tf32` is not of device `cpu`")
        if precision == "bf16" and not target.has(*_BF16[device]):
            return Support(False, reason=f"needs one of {', '.join(_BF16[device])}, which this target lacks")
        return super().lacks(options, target)

    def probe(self, target: Target) -> Support:
        """Besides the package: the C++ compiler that Inductor will call."""
        support = super().probe(target)
        compiler = os.environ.get("CXX", "g++")
        if support.ready and shutil.which(compiler) is None:
            reason = f"AOTInductor needs a C++ compiler, and `{compiler}` is not on the PATH"
            return Support(False, support.version, reason, "apt-get install g++")
        return support

    def compile(
        self,
        model: Model,
        target: Target,
        *,
        device: Annotated[
            Device, Knob(needs={"cuda": ("cuda",)}, help="What it runs on: the processor, or the first GPU.")
        ] = "cpu",
        precision: Annotated[
            Precision,
            Knob(
                needs={"tf32": ("cuda_tf32",), "bf16": (*_BF16["cpu"], *_BF16["cuda"])},
                help="The arithmetic of matrix products and convolutions; tf32 (on GPUs) and bf16 are not exact.",
            ),
        ] = "f32",
        freezing: Annotated[
            bool, Knob(search=False, help="Whether weights are folded and packed into the code.")
        ] = True,
        layout: Annotated[
            Layout, Knob(search=False, help="How images lie in memory between convolutions.")
        ] = "channels_last",
        # A number of threads is compiled in, so trying another one would cost another compilation.
        threads: Annotated[int, Knob(search=False, help="Threads of one inference; 0 means all cores.")] = 0,
        compiler: Annotated[
            Compiler,
            Knob(
                search=False, help="Native code by Inductor, or the graph run operator by operator: no compiler needed."
            ),
        ] = "inductor",
    ) -> Package | Eager:
        """Compiles the exported program beside `model`, or its graph where there is none.

        Raises:
            NoBackend: the device is not there, or the package has no code for it.
            UnsupportedOperator: the graph holds what cannot be imported or compiled.
            ModelError: program or graph cannot be read.
        """
        from portolan.importers.reading import demand_readable

        demand_able(self, {"device": device, "precision": precision}, target)
        if compiler == "eager" or model.program is None:
            demand_readable(self.name, model)
        if compiler == "eager":
            _only_f32(precision)
            return Eager(Artefact.of(model), device, threads or target.cores)
        torch, count = runtime("torch"), threads or target.cores
        torch.set_num_threads(count)
        with contextlib.ExitStack() as undo:
            work = tempfile.TemporaryDirectory(prefix="portolan-torch-")
            undo.callback(work.cleanup)
            # Inductor's own cache would hide compile time, and fill a folder that all users share.
            cache, package = Path(work.name) / "cache", Path(work.name) / _PACKAGE
            settings = {
                "freezing": freezing,
                "layout_optimization": layout == "channels_last",
                "cpp.threads": count,
                "compile_threads": 1,  # one source file; a pool of processes would outlive the compilation
                "aot_inductor.metadata": {_PRECISION: precision, _THREADS: str(count)},
            }
            program = imported(model) if model.program is None else read_program(model.program)
            with (
                environment(TORCHINDUCTOR_CACHE_DIR=str(cache)),
                explained("torch", model.program or model.path, doing="compile"),
                torch.no_grad(),  # freezing wants no gradients
            ):
                if device != CPU:
                    _torch_gpu.demand_gpu()
                    _torch_gpu.compute_in(torch, precision)
                    program = _torch_gpu.moved(program)
                if precision == "bf16":
                    program = _reduced(program, device)
                torch._inductor.aoti_compile_and_package(program, package_path=str(package), inductor_configs=settings)
            shutil.rmtree(cache, ignore_errors=True)
            executable = Package(Artefact.of(model, package), device, precision, count, work)
            undo.pop_all()
        return executable

    def load(
        self,
        folder: Path,
        *,
        device: Device = "cpu",
        precision: Precision = "f32",
        freezing: bool = True,
        layout: Layout = "channels_last",
        threads: int = 0,
        compiler: Compiler = "inductor",
    ) -> Package | Eager:
        """Loads what was saved. Inductor's is native code: never load a stranger's."""
        del freezing, layout  # compiled in, as the others are, but the package does not tell
        if compiler == "eager":
            return Eager(Artefact.open(folder), device, threads or all_cores())
        return Package(Artefact.open(folder, _PACKAGE), device, precision, threads, None)


def _only_f32(precision: Precision) -> None:
    if precision != "f32":
        raise UsageError("`compiler=eager` computes in f32 only", hint="leave `precision` out, or use `inductor`")


def _reduced(program: Any, device: Device = "cpu") -> Any:
    """The program with its matrix products and convolutions in bf16; inputs and outputs keep their types."""
    torch = runtime("torch")
    tree = runtime("torch.utils._pytree")
    inner, base = program.module(), torch.nn.Module

    class Reduced(base):  # type: ignore[misc, valid-type]
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            with torch.autocast(device, dtype=torch.bfloat16):
                outputs = inner(*args, **kwargs)
            return tree.tree_map(lambda v: v.float() if getattr(v, "dtype", None) is torch.bfloat16 else v, outputs)

    args, kwargs = program.example_inputs
    tensors = [leaf for leaf in tree.tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    free, shapes = free_axes(program), torch.export.ShapesCollection()
    for tensor, axes in zip(tensors, free, strict=True):
        if axes:
            shapes[tensor] = dict.fromkeys(axes, torch.export.Dim.AUTO)
    reduced = torch.export.export(Reduced(), args, kwargs, dynamic_shapes=shapes if any(free) else None)
    if free_axes(reduced) != free:
        raise ModelError("a free dimension of the program became fixed on the way to bf16", hint="use precision `f32`")
    return reduced


torch = Torch()
