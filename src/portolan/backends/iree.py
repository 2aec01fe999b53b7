"""IREE: a small artefact of native code, compiled ahead of time through MLIR, that needs 15 MB of runtime."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from portolan.backends._artefact import Artefact, all_cores, explained
from portolan.backends._convert import Native, Workplace, compiled, foreign_type, graph
from portolan.core.backend import Backend, Tensors
from portolan.core.model import Model
from portolan.core.schema import Knob
from portolan.core.silence import runtime
from portolan.core.target import Target
from portolan.errors import PortolanError

if TYPE_CHECKING:
    import numpy as np

Level = Literal["O2", "O3"]
_MODULE = "model.vmfb"
_TYPES = ("float32", "float64", "float16", "int8", "int16", "int32", "int64", "uint8", "bool")
_LACKS = (r'name = "onnx\.([\w.]+)"', r'torch\.operator "onnx\.([\w.]+)"', r"unsupported.*?onnx\.(\w+)")
#: Without it no model with a LayerNorm compiles with data tiling: its tiles are larger than the default allows.
_STACK = 1 << 20
#: Older graphs are brought up to date first.
_OPSET = 17
_THREADS = "--task_topology_group_count="


class Program(Native):
    """A loaded module on a device of its own."""

    def __init__(self, artefact: Artefact, threads: int, place: Workplace | None = None) -> None:
        super().__init__(artefact, place)
        rt = runtime("iree.runtime")
        self._threads = threads
        with explained("iree", artefact.path):
            if threads > 1:
                rt.flags.parse_flags(f"{_THREADS}{threads}")
            device = rt.get_device("local-task" if threads > 1 else "local-sync", cache=False)
            config = rt.Config(device=device)
            self._module = rt.load_vm_module(rt.VmModule.mmap(config.vm_instance, str(artefact.path)), config)
            names = self._module.vm_module.function_names
            entry = next(name for name in names if not name.startswith("__") and not name.endswith("$async"))
            self._function = self._module[entry]

    def run(self, inputs: Tensors) -> dict[str, np.ndarray]:
        """Runs once."""
        import numpy as np

        values = self._function(*(np.ascontiguousarray(inputs[spec.name]) for spec in self._inputs))
        several = values if isinstance(values, (tuple, list)) else [values]
        return self.named(value.to_host() for value in several)

    def facts(self) -> dict[str, Any]:
        """The device, and the size of the group of threads that it was given."""
        return {"device": "cpu", "precision": "f32", "threads": self._threads}

    def close(self) -> None:
        """Drops the module."""
        self._function = self._module = None
        super().close()


class Iree(Backend):
    """IREE's CPU code generator. Fast on single rows of transformers, slow on convolutions."""

    name = "iree"
    distributions = ("iree-base-runtime", "iree-base-compiler")
    module = "iree"
    fix = "portolan env add iree"
    heavy = True
    native_code = True

    def refuse(self, model: Model, target: Target) -> str | None:
        """Besides the features: element types that it has none of."""
        return super().refuse(model, target) or foreign_type("iree", model, *_TYPES)

    def compile(
        self,
        model: Model,
        target: Target,
        *,
        tiling: Annotated[
            bool, Knob(help="Whether operands are laid out in tiles, with microkernels for them.")
        ] = True,
        level: Annotated[Level, Knob(search=False, help="How much is optimized.")] = "O3",
        # Decided at load, but another value would be compiled again.
        threads: Annotated[int, Knob(search=False, help="Threads of one inference; 0 means all cores.")] = 0,
    ) -> Native:
        """Compiles `model` for this processor; takes 3 to 13 s."""

        def make(place: Workplace) -> Native:
            out = place.path / _MODULE
            with explained("iree", model.path, *_LACKS, doing="compile"):
                _compile(_imported(model, place.path), out, tiling, level)
            return Program(Artefact.of(model, out), threads or target.cores, place)

        return compiled("iree", model, make)

    def load(self, folder: Path, *, tiling: bool = True, level: Level = "O3", threads: int = 0) -> Native:
        """Loads what was saved. It is native code: never load a stranger's."""
        del tiling, level  # compiled in
        return Program(Artefact.open(folder, _MODULE), threads or all_cores())


def _imported(model: Model, folder: Path) -> Path:
    """The graph as MLIR, by the importer's own entry point in this process: it is Python, and starts nothing."""
    import onnx

    source, out = folder / "model.onnx", folder / "model.mlir"
    proto = graph(model)
    onnx.save(proto, str(source), save_as_external_data=proto.ByteSize() > 1 << 30, location="model.data")
    tool = runtime("iree.compiler.tools.import_onnx.__main__")
    newer = ["--opset-version", "18"] if model.opset < _OPSET else []
    code = tool.main(tool.parse_arguments([str(source), "-o", str(out), *newer]))
    if code:
        raise PortolanError(f"the importer ended with {code}")
    return out


def _compile(source: Path, out: Path, tiling: bool, level: Level) -> None:
    """Calls the compiler that lies beside the package, never one of the PATH.

    Raises:
        PortolanError: it refused; the message is its own.
    """
    binary = runtime("iree.compiler.tools.binaries").find_tool("iree-compile")
    flags = [
        "--iree-input-type=onnx",
        "--iree-hal-target-device=local",
        "--iree-hal-local-target-device-backends=llvm-cpu",
        "--iree-llvmcpu-target-cpu=host",
        f"--iree-opt-level={level}",
        f"--iree-llvmcpu-stack-allocation-limit={_STACK}",
        *(["--iree-opt-data-tiling", "--iree-llvmcpu-enable-ukernels=all"] if tiling else []),
    ]
    done = subprocess.run([binary, str(source), "-o", str(out), *flags], capture_output=True, text=True, check=False)
    if done.returncode or not out.is_file():
        raise RuntimeError(_first_error(done.stderr) or f"iree-compile ended with {done.returncode}")


def _first_error(text: str) -> str:
    """The compiler's first complaint, with the operator it is about."""
    found = re.search(r"error: (.*)", text)
    operator = re.search(r'name = "onnx\.[\w.]+"|torch\.operator "onnx\.[\w.]+"', text)
    return " ".join(part for part in (found[1][:200] if found else "", operator[0] if operator else "") if part)


iree = Iree()
