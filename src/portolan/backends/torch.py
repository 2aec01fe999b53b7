"""PyTorch's AOTInductor: native code from the exported program. Compiling takes 10 to 25 s and a C++ compiler."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from portolan.backends._artefact import Artefact, demand, explained
from portolan.core.backend import Backend, Executable, Support, Tensors
from portolan.core.model import Model
from portolan.core.schema import Knob
from portolan.core.silence import runtime
from portolan.core.target import Target, usable_cores
from portolan.errors import ModelError

if TYPE_CHECKING:
    import numpy as np

Layout = Literal["channels_last", "contiguous"]
_PACKAGE = "model.pt2"
_LACKS = (
    r"(?:[Uu]nsupported|[Mm]issing) operator:? [`']?([\w.:]+)",
    r"'_OpNamespace' '(\w+)' object has no attribute '\w+'",
    r"torch\.ops\.([\w.]+)",
)


class Package(Executable):
    """A loaded package. Its runner lets one thread in at a time, so `run` may be called from several."""

    def __init__(self, artefact: Artefact, threads: int, work: tempfile.TemporaryDirectory[str] | None = None) -> None:
        import numpy as np

        self._torch = runtime("torch")
        self._torch.set_num_threads(threads)
        # The code only reads its inputs, so one that arrived in a read-only buffer needs no copy and no warning.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable", category=UserWarning)
        with explained("torch", artefact.path):
            package = self._torch._inductor.aoti_load_package(str(artefact.path))
        self._runner, self._metadata = package.loader, package.get_metadata()
        self._artefact, self._work, self._threads = artefact, work, threads
        self._inputs = tuple(spec.name for spec in artefact.signature.inputs)
        self._names = artefact.outputs
        self._contiguous, self._aliased = np.ascontiguousarray, np.may_share_memory
        demand("torch", {"device": "cpu", "threads": threads}, self.facts())

    def run(self, inputs: Tensors) -> dict[str, np.ndarray]:
        """Runs once. The code takes any array for a contiguous one, and hands back an input that it passes through."""
        arrays = [self._contiguous(inputs[name]) for name in self._inputs]
        values = [v.numpy() for v in self._runner.run([self._torch.from_numpy(a) for a in arrays])]
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
            "precision": "f32",
            "threads": self._torch.get_num_threads(),
            "isa": self._metadata.get("AOTI_CPU_ISA"),
        }

    def close(self) -> None:
        """Drops the code and the folder it was compiled in."""
        self._runner = None
        if self._work is not None:
            self._work.cleanup()


class Torch(Backend):
    """AOTInductor on the CPU."""

    name = "torch"
    distributions = ("torch",)
    module = "torch"
    fix = "pip install torch"
    needs_program = True

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
        freezing: Annotated[
            bool, Knob(search=False, help="Whether weights are folded and packed into the code.")
        ] = True,
        layout: Annotated[
            Layout, Knob(search=False, help="How images lie in memory between convolutions.")
        ] = "channels_last",
        # A number of threads is compiled in, so trying another one would cost another compilation.
        threads: Annotated[int, Knob(search=False, help="Threads of one inference; 0 means all cores.")] = 0,
    ) -> Package:
        """Compiles the exported program beside `model`.

        Raises:
            ModelError: there is none, or it cannot be read.
        """
        if model.program is None:
            raise ModelError(
                f"`torch` starts from a torch program, and `{model.name}` is a plain ONNX graph",
                hint="give the module itself: `file.py:factory` or an exported `.pt2`",
            )
        torch, count = runtime("torch"), threads or target.cores
        work = tempfile.TemporaryDirectory(prefix="portolan-torch-")
        package = Path(work.name) / _PACKAGE
        settings = {
            "freezing": freezing,
            "layout_optimization": layout == "channels_last",
            "force_layout_optimization": False,
            "cpp.threads": count,
            "compile_threads": 1,  # one source file; a pool of processes would outlive the compilation
        }
        torch.set_num_threads(count)
        # Inductor's cache would hide compile time and fill a folder shared by all users; freezing wants no gradients.
        environment = _environment(
            TORCHINDUCTOR_CACHE_DIR=str(Path(work.name) / "cache"), TORCH_FORCE_WEIGHTS_ONLY_LOAD="1"
        )
        with environment, explained("torch", model.program, *_LACKS), torch.no_grad():
            program = torch.export.load(str(model.program))
            torch._inductor.aoti_compile_and_package(program, package_path=str(package), inductor_configs=settings)
        shutil.rmtree(Path(work.name) / "cache", ignore_errors=True)
        return Package(Artefact.of(model, package), count, work)

    def load(
        self, folder: Path, *, freezing: bool = True, layout: Layout = "channels_last", threads: int = 0
    ) -> Package:
        """Loads what was saved. It is native code: never load a stranger's."""
        del freezing, layout  # compiled in
        return Package(Artefact.open(folder, _PACKAGE), threads or usable_cores())


@contextlib.contextmanager
def _environment(**settings: str) -> Iterator[None]:
    """Environment variables for a while; the weights-only one keeps a `.pt2` from running pickled code."""
    before = {key: os.environ.get(key) for key in settings}
    os.environ.update(settings)
    try:
        yield
    finally:
        for key, value in before.items():
            if value is None:
                os.environ.pop(key, None)
            else:
                os.environ[key] = value


torch = Torch()
