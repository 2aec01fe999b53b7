"""XLA through JAX: an ONNX graph traced as a program over arrays, compiled ahead for each size it is run with.

XLA compiles for fixed sizes. A free size, and a short input that sizes depend on, are part of what is compiled: the
first call with another one compiles again, and what was compiled is saved.

On NVIDIA's GPUs (`device=cuda`) a run starts and ends with arrays in the processor's memory, so its time holds both
copies.
"""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from portolan.backends import _xla_gpu
from portolan.backends._artefact import Artefact, all_cores, demand, explained
from portolan.backends._cuda import demand_able
from portolan.core.backend import CPU, Backend, Executable, Support, Tensors
from portolan.core.model import Model
from portolan.core.schema import Knob
from portolan.core.silence import environment, runtime
from portolan.core.target import Target
from portolan.targets.local import local

if TYPE_CHECKING:
    import numpy as np

    from portolan.importers.program import Program

Device = Literal["cpu", "cuda"]
Precision = Literal["f32", "tf32"]
Weights = Literal["constants", "arguments"]
Width = Literal["256", "512"]
_INDEX = "compiled.json"
#: Programs for different sizes that are kept; the one unused for longest goes first.
_KEPT = 32
#: Smaller weights are constants in any case.
_ARGUMENT_BYTES = 4096
#: One thread of XLA's pool, as the system names it.
_POOL = "tf_XLAEigen"


@dataclass(frozen=True)
class Sizes:
    """What a program is compiled for.

    Attributes:
        shapes: of the inputs, in order.
        values: what the inputs hold that sizes depend on, by name.
    """

    shapes: tuple[tuple[int, ...], ...]
    values: tuple[tuple[str, tuple[float, ...]], ...] = ()


@dataclass(frozen=True)
class How:
    """The options of `compile` that programs depend on."""

    device: Device = "cpu"
    precision: Precision = "f32"
    weights: Weights = "constants"
    width: Width = "256"


class Compiled(Executable):
    """A program for each size that it was run with. XLA's executables may be called from several threads."""

    def __init__(self, artefact: Artefact, how: How, threads: int, folder: Path | None) -> None:
        self._jax = _started(how.device, threads)
        self._artefact, self._how, self._weights = artefact, how, how.weights
        with _xla_gpu.blamed(how.device):
            self._device = self._jax.devices(how.device)[0]
        self._programs: OrderedDict[Sizes, Any] = OrderedDict()
        self._lock = threading.Lock()
        self._source: Program | None = None
        self._arguments: list[Any] | None = None
        self._deciding: tuple[str, ...] = ()
        demand("xla", {"device": how.device, "threads": threads or all_cores()}, self.facts())
        if folder is None or not self._reload(folder):
            self._deciding = self._read().deciding
            self._compile_ahead()

    # Running ----------------------------------------------------------------------------------------------------------

    def run(self, inputs: Tensors) -> dict[str, np.ndarray]:
        """Runs once; sizes that were not seen before are compiled for first."""
        import numpy as np

        specs = self._artefact.signature.inputs
        arrays = [np.asarray(inputs[spec.name]) for spec in specs]
        values = tuple((n, tuple(np.asarray(inputs[n]).reshape(-1).tolist())) for n in self._deciding)
        program = self._program(Sizes(tuple(a.shape for a in arrays), values))
        put = self._jax.device_put(arrays, self._device)
        results = program.execute_sharded([*put, *self._weights_put()]).disassemble_into_single_device_arrays()
        return {name: np.array(part[0]) for name, part in zip(self._artefact.outputs, results, strict=True)}

    def _program(self, sizes: Sizes) -> Any:
        with self._lock:
            if sizes not in self._programs:
                self._programs[sizes] = self._compile(sizes)
                if len(self._programs) > _KEPT:
                    self._programs.popitem(last=False)
            self._programs.move_to_end(sizes)
            return self._programs[sizes]

    def _weights_put(self) -> list[Any]:
        if self._weights == "constants":
            return []
        if self._arguments is None:
            constants = self._read().constants
            self._arguments = self._jax.device_put([constants[name] for name in self._large()], self._device)
        return self._arguments

    # Compiling --------------------------------------------------------------------------------------------------------

    def _read(self) -> Program:
        from portolan.importers.graphs import program

        if self._source is None:
            with explained("xla", self._artefact.path), self._artefact.unpacked() as path:
                self._source = program(path, path.stem)
        return self._source

    def _large(self) -> list[str]:
        program = self._read()
        return [name for name in program.weights if program.constants[name].nbytes >= _ARGUMENT_BYTES]

    def _compile_ahead(self) -> None:
        """For the sizes of the signature; a free one is 1. Where those decide, only a call tells."""
        if not self._deciding:
            shapes = (tuple(1 if isinstance(d, str) else d for d in s.shape) for s in self._artefact.signature.inputs)
            self._program(Sizes(tuple(shapes)))

    def _compile(self, sizes: Sizes) -> Any:
        import numpy as np

        from portolan.importers.jax_ import Jax

        program, specs = self._read(), self._artefact.signature.inputs
        kinds = {spec.name: np.dtype(spec.dtype) for spec in specs}
        shapes = {spec.name: shape for spec, shape in zip(specs, sizes.shapes, strict=True)}
        fixed = {name: np.array(held, kinds[name]).reshape(shapes[name]) for name, held in sizes.values}
        extra = [] if self._weights == "constants" else self._large()
        constants = {name: value for name, value in program.constants.items() if name not in extra}
        program = replace(program, constants=constants)

        def call(*arrays: Any) -> tuple[Any, ...]:
            values = dict(zip((*shapes, *extra), arrays, strict=True)) | fixed
            return tuple(program.run(Jax(), values).values())

        shaped = [self._jax.ShapeDtypeStruct(shapes[name], kinds[name]) for name in shapes]
        held = self._read().constants
        shaped += [self._jax.ShapeDtypeStruct(held[name].shape, held[name].dtype) for name in extra]
        settings = {"xla_cpu_prefer_vector_width": int(self._how.width)} if self._how.device == CPU else {}
        arithmetic = _xla_gpu.arithmetic(self._jax, self._how.device, self._how.precision)
        with explained("xla", self._artefact.path, doing="compile"), arithmetic:
            lowered = self._jax.jit(call, keep_unused=True).lower(*shaped)
            made = lowered.compile(compiler_options=settings).runtime_executable()
        if self._weights == "constants":
            self._source = None  # the code holds them now; another size reads them again
        return made

    # Keeping ----------------------------------------------------------------------------------------------------------

    def save(self, folder: Path) -> None:
        """Writes the graph, for sizes to come, and the machine code of every size seen so far."""
        self._artefact.save(folder)
        with self._lock:
            programs = list(self._programs.items())
        listed = []
        for number, (sizes, program) in enumerate(programs):
            (folder / f"program-{number}.xla").write_bytes(program.serialize())
            listed.append({"shapes": sizes.shapes, "values": sizes.values})
        index = {"made": self._made_for(), "deciding": self._deciding, "programs": listed}
        (folder / _INDEX).write_text(json.dumps(index))

    def _reload(self, folder: Path) -> bool:
        """Loads the saved programs; False where another version, or a processor of other features, made them."""
        try:
            index = json.loads((folder / _INDEX).read_text())
            if index["made"] != self._made_for():
                return False
            devices = runtime("jaxlib._jax").DeviceList((self._device,))
            for number, listed in enumerate(index["programs"]):
                code = (folder / f"program-{number}.xla").read_bytes()
                sizes = Sizes(
                    tuple(map(tuple, listed["shapes"])), tuple((name, tuple(held)) for name, held in listed["values"])
                )
                self._programs[sizes] = self._device.client.deserialize_executable(code, devices, None)
            self._deciding = tuple(index["deciding"])
        except (OSError, ValueError, KeyError, TypeError, RuntimeError):
            self._programs.clear()  # damaged: the graph beside it is compiled again
            return False
        return True

    def _made_for(self) -> list[Any]:
        """What machine code depends on: the compiler's version, the processor's features, and the GPU."""
        made = [self._jax.__version__, runtime("jaxlib").__version__, sorted(local.processor().features)]
        return made if self._how.device == CPU else [*made, *_xla_gpu.described(self._device)]

    def facts(self) -> dict[str, Any]:
        """The device, and how many threads XLA's pool has."""
        return {
            "device": _xla_gpu.kind(self._device),
            "precision": self._how.precision,
            "threads": _pool(),
            "programs": len(self._programs),
        }

    def close(self) -> None:
        """Drops the programs and the weights."""
        self._programs.clear()
        self._arguments = self._source = None


def _started(device: Device, threads: int) -> Any:
    """JAX with 64-bit numbers, and a pool of so many threads if this process has none yet."""
    jax = runtime("jax")
    jax.config.update("jax_enable_x64", True)
    jax.config.update("jax_platforms", "cpu" if device == CPU else "cuda,cpu")
    # The first is read once, as the pool is made; the second keeps XLA from taking most of a GPU's memory at once.
    with environment(NPROC=str(threads or all_cores()), XLA_PYTHON_CLIENT_PREALLOCATE="false"), _xla_gpu.blamed(device):
        jax.devices("cpu")
    return jax


def _pool() -> int:
    tasks = Path("/proc/self/task")
    names = (task / "comm" for task in (tasks.iterdir() if tasks.is_dir() else ()))
    return sum(name.read_text().strip() == _POOL for name in names if name.exists())


class Xla(Backend):
    """XLA on the CPU, and on NVIDIA's GPUs, where we never ran it yet."""

    name = "xla"
    distributions = ("jaxlib", "jax")
    module = "jax"
    fix = "portolan env add xla"

    def devices(self, target: Target) -> Mapping[str, Support]:
        """By the packages beside JAX: whether one of them is its plug-in for CUDA."""
        return _xla_gpu.devices(self.name, target)

    def lacks(self, options: Mapping[str, Any], target: Target) -> Support | None:
        """Besides the device: only GPUs have tf32."""
        if options["device"] == CPU and options["precision"] == "tf32":
            return Support(False, reason="precision `tf32` is not of device `cpu`")
        return super().lacks(options, target)

    def refuse(self, model: Model, target: Target) -> str | None:
        """Besides the features: operators that the importer lacks, and strings."""
        from portolan.importers.reading import refusal

        return refusal(self.name, model) or super().refuse(model, target)

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
                needs={"tf32": ("cuda_tf32",)},
                when={"device": ("cuda",)},
                help="A GPU's arithmetic of products and convolutions; tf32 is not exact.",
            ),
        ] = "f32",
        weights: Annotated[
            Weights,
            Knob(help="Where weights are: constants are laid out for convolutions; arguments are held once."),
        ] = "constants",
        vector_width: Annotated[
            Width,
            Knob(
                needs={"512": ("avx512f",)},
                when={"device": ("cpu",)},
                help="Bits of the vectors that its code prefers.",
            ),
        ] = "256",
        # The pool of threads is made once in a process.
        threads: Annotated[int, Knob(search=False, help="Threads of one inference; 0 means all cores.")] = 0,
    ) -> Compiled:
        """Compiles `model` for the sizes of its signature, a free one being 1.

        Raises:
            NoBackend: the device is not there, or the packages have no code for it.
        """
        from portolan.importers.reading import demand_readable

        demand_able(self, {"device": device, "precision": precision}, target)
        demand_readable(self.name, model)
        how = How(device, precision, weights, vector_width)
        return Compiled(Artefact.of(model), how, threads or target.cores, None)

    def load(
        self,
        folder: Path,
        *,
        device: Device = "cpu",
        precision: Precision = "f32",
        weights: Weights = "constants",
        vector_width: Width = "256",
        threads: int = 0,
    ) -> Compiled:
        """Loads the saved machine code; another version of XLA or another processor compiles the graph again."""
        return Compiled(Artefact.open(folder), How(device, precision, weights, vector_width), threads, folder)


xla = Xla()
