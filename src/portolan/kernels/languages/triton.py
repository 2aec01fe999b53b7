"""Triton: run where torch sees a GPU; else under its interpreter, and compiled without a GPU."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import zipfile
from collections.abc import Mapping, Sequence
from importlib.metadata import version as installed
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from portolan.core.interpreters import python_for
from portolan.core.running import CompilerError
from portolan.errors import UsageError
from portolan.kernels.device import Array, OnDevice
from portolan.kernels.language import Here, Language, Loaded
from portolan.kernels.plan import Plan
from portolan.kernels.printers.triton import TritonPrinter
from portolan.worker.session import Worker, patience

#: Tasks of a program: few for a GPU, many for the interpreter, whose costs are per program.
_LANES, _INTERPRETED = 128, 2048
_WARP = 32
#: What machine code is made for where there is no GPU: Hopper.
_AHEAD = ("cuda", 90)
_NAMES = {"f32": "float32", "f16": "float16", "bf16": "bfloat16", "i8": "int8", "i32": "int32"}
_POINTERS = {"f32": "*fp32", "f16": "*fp16", "bf16": "*bf16", "i8": "*i8", "i32": "*i32"}
_FIX = "pip install 'portolan[triton]', in an environment of its own that PORTOLAN_PYTHON_TRITON names"


class Triton(Language):
    """A module of Triton functions, compiled when they are called."""

    name, about, suffix, built = "triton", "Triton, for NVIDIA and AMD GPUs", ".py", ".py"
    ahead = ".cubins.zip"

    def printer(self) -> TritonPrinter:
        """Python."""
        return TritonPrinter()

    def probe(self) -> Here:
        """Whether triton is there, and a GPU."""
        if importlib.util.find_spec("triton") is None:
            return Here("print", reason="triton is not installed", fix=_FIX)
        version = f"triton {installed('triton')}"
        if (gpu := _gpu()) is not None:
            return Here("time", f"{version}, {gpu}")
        reason = "there is no GPU with torch beside triton: checked by the interpreter, and compiled for sm_90"
        return Here("check", f"{version}, interpreted", reason=reason)

    def load(self, path: Path, plan: Plan) -> Loaded:
        """On the GPU, or in the interpreter."""
        if _gpu() is not None:
            return _OnGPU(path, plan)
        # Read when the functions are decorated, at the import.
        os.environ["TRITON_INTERPRET"] = "1"
        return _Interpreted(path, plan)

    def compile_ahead(self, source: Path, out: Path) -> None:
        """Machine code of every function, in a zip; made in triton's own environment."""
        with Worker(module="portolan.kernels.agent", python=python_for(self.name)) as worker:
            places = {"source": str(source), "out": str(out)}
            worker.ask("compile", timeout=patience(300), tensors=None, language=self.name, places=places)

    def machine_code(self, source: Path, out: Path) -> None:
        """What `compile_ahead` asks for, in the process that has triton.

        Raises:
            CompilerError: triton refused it.
        """
        from triton import compiler
        from triton.backends.compiler import GPUTarget

        plan = Plan.from_json(json.loads(source.with_suffix(".json").read_bytes()))
        module = _module(source)
        kinds = [*(_POINTERS[d] for d in (*plan.inputs, *plan.outputs)), "*fp32"]
        kinds += ["i32"] * (len(plan.symbols) + 1) + ["constexpr"]
        with zipfile.ZipFile(out, "w") as file:
            for step in (s for nest in plan.nests for s in nest):
                function = getattr(module, step.entry)
                signature = dict(zip(function.arg_names, kinds, strict=True))
                try:
                    asked = compiler.ASTSource(fn=function, signature=signature, constexprs={"LANES": _LANES})
                    made = compiler.compile(asked, target=GPUTarget(*_AHEAD, _WARP))
                except Exception as error:  # a compiler's own errors, of many kinds
                    raise CompilerError(f"triton refused `{step.entry}`: {str(error)[:600]}") from error
                file.writestr(f"{step.entry}.cubin", made.asm["cubin"])


def _gpu() -> str | None:
    """The GPU that torch sees; None without torch or GPU."""
    if importlib.util.find_spec("torch") is None:
        return None
    import torch

    return str(torch.cuda.get_device_name(0)) if torch.cuda.is_available() else None


def _module(path: Path) -> ModuleType:
    """The generated module. Triton reads the source of its functions from the file.

    Raises:
        CompilerError: it is no module.
    """
    spec = importlib.util.spec_from_file_location(f"portolan_{path.stem}".replace("-", "_"), path)
    if spec is None or spec.loader is None:
        raise CompilerError(f"`{path}` is no Python")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # whatever a damaged file leads to
        raise CompilerError(f"`{path.name}` cannot be loaded: {error}") from error
    return module


class _Memory:
    """A NumPy array as the interpreter wants to see a tensor: it reads and writes at the address."""

    def __init__(self, array: Array, dtype: str) -> None:
        self.array, self.dtype = array, _NAMES[dtype]

    def data_ptr(self) -> int:
        """Where it begins."""
        return int(self.array.ctypes.data)

    def untyped_storage(self) -> _Memory:
        """Itself: there is no other storage."""
        return self

    cpu = untyped_storage

    def new_empty(self, *_: Any, **__: Any) -> _Memory:
        """The copy on the host that the interpreter asks for: itself."""
        return _Memory.__new__(_Memory)

    def set_(self, storage: _Memory, *_: Any) -> None:
        """Becomes `storage`."""
        self.array, self.dtype = storage.array, storage.dtype

    def copy_(self, other: _Memory) -> None:
        """Nothing moved."""

    def storage_offset(self, *_: Any) -> int:
        """From the beginning."""
        return 0

    size = stride = storage_offset


class _Interpreted(Loaded):
    """Under TRITON_INTERPRET: NumPy does the work, in the order of programs."""

    def __init__(self, path: Path, plan: Plan) -> None:
        self.module, self.plan = _module(path), plan

    def __call__(self, arrays: Sequence[Array], sizes: Mapping[str, int], pool: Any = None) -> None:
        """One program after another."""
        dtypes = (*self.plan.inputs, *self.plan.outputs)
        held = [_Memory(a, d) for a, d in zip(arrays, dtypes, strict=True)]
        numbers = self.plan.numbers(sizes)
        for entry, tasks, words in self.plan.starts(sizes):
            scratch = _Memory(np.empty(max(1, words), np.float32), "f32")
            grid = (-(-tasks // _INTERPRETED),)
            with np.errstate(all="ignore"):
                getattr(self.module, entry)[grid](*held, scratch, *numbers, tasks, LANES=_INTERPRETED)


class _OnGPU(OnDevice):
    """On the GPU that torch sees; torch holds the memory."""

    def __init__(self, path: Path, plan: Plan) -> None:
        import torch

        super().__init__(plan)
        self.torch, self.module = torch, _module(path)
        if any(not hasattr(self.module, s.entry) for nest in plan.nests for s in nest):
            raise UsageError(f"`{path.name}` does not hold the functions of `{plan.kernel}`")
        self.kinds = [getattr(torch, _NAMES[d]) for d in (*plan.inputs, *plan.outputs)]

    def allocate(self, size: int) -> Any:
        """Bytes on the GPU."""
        return self.torch.empty(size, dtype=self.torch.uint8, device="cuda")

    def copy_in(self, buffer: Any, array: Array) -> None:
        """To the GPU."""
        if array.nbytes:
            raw = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
            buffer[: array.nbytes].copy_(self.torch.from_numpy(raw))

    def copy_out(self, array: Array, buffer: Any) -> None:
        """From the GPU."""
        array.reshape(-1).view(np.uint8)[...] = buffer[: array.nbytes].cpu().numpy()

    def start(self, entry: str, tasks: int, buffers: Sequence[Any], numbers: Sequence[int]) -> None:
        """A program for each block of tasks."""
        kinds = [*self.kinds, self.torch.float32]
        typed = [self._typed(b, kind) for b, kind in zip(buffers, kinds, strict=True)]
        getattr(self.module, entry)[(-(-tasks // _LANES),)](*typed, *numbers, LANES=_LANES)

    def _typed(self, buffer: Any, kind: Any) -> Any:
        """The buffer as numbers of a type; small ones are rounded up to whole words."""
        return buffer[: buffer.numel() // kind.itemsize * kind.itemsize].view(kind)

    def wait(self) -> None:
        """All that was started."""
        self.torch.cuda.synchronize()


triton = Triton()
