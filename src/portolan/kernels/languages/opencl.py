"""OpenCL: GPUs of all makers, and CPUs through PoCL. Programs are compiled by the driver when they are loaded."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from portolan.core.running import CompilerError
from portolan.errors import NoBackend
from portolan.kernels.device import Array, OnDevice
from portolan.kernels.language import Here, Language
from portolan.kernels.lower.shared import THREADS
from portolan.kernels.plan import Plan
from portolan.kernels.printers.opencl import OpenCLPrinter

_FIX = "pip install 'portolan[opencl]'"
_TRIAL = "__kernel void trial(__global float *a) { a[0] = 1; }"


class OpenCL(Language):
    """Runs on the first GPU that a driver names, else on its first device."""

    name, about, suffix, built = "opencl", "OpenCL C 1.2, for GPUs and through PoCL for CPUs", ".cl", ".cl"
    shares = True

    def printer(self) -> OpenCLPrinter:
        """OpenCL C."""
        return OpenCLPrinter()

    def probe(self) -> Here:
        """Whether pyopencl is there and finds a device."""
        if importlib.util.find_spec("pyopencl") is None:
            return Here("print", reason="pyopencl is not installed", fix=_FIX)
        try:
            device = first_device()
        except Exception as error:  # drivers fail in many ways
            return Here("print", reason=f"no OpenCL device: {error}", fix="apt install pocl-opencl-icd")
        return Here("time", f"{device.name.strip()}, {device.version.strip()}, driver {device.driver_version.strip()}")

    def load(self, path: Path, plan: Plan) -> OnDevice:
        """Compiled by the driver."""
        return _Loaded(path, plan)


@functools.cache
def first_device() -> Any:
    """The first GPU that compiles a program, else the first such device of any kind.

    Raises:
        NoBackend: no driver has one. PoCL, for one, refuses all programs on processors newer than its LLVM.
    """
    import pyopencl as cl

    found = [d for p in cl.get_platforms() for d in p.get_devices()]
    refused = []
    for device in sorted(found, key=lambda d: not d.type & cl.device_type.GPU):
        try:
            cl.Program(cl.Context([device]), _TRIAL).build()
        except cl.Error as error:
            lines = str(error).strip().splitlines() or [type(error).__name__]
            refused.append(next((line for line in lines if line.startswith("error:")), lines[0]))
            continue
        return device
    if refused:
        said = "; ".join(dict.fromkeys(refused))
        raise NoBackend(f"every OpenCL driver refuses to compile: {said}", hint="apt install pocl-opencl-icd")
    raise NoBackend("no OpenCL driver has a device", hint="apt install pocl-opencl-icd")


class _Loaded(OnDevice):
    """A built program and a queue."""

    def __init__(self, path: Path, plan: Plan) -> None:
        import pyopencl as cl

        super().__init__(plan)
        self.cl = cl
        self.context = cl.Context([first_device()])
        self.queue = cl.CommandQueue(self.context)
        try:
            program = cl.Program(self.context, path.read_text(encoding="utf-8")).build()
        except cl.RuntimeError as error:
            raise CompilerError(f"the OpenCL driver refused `{plan.kernel}`: {str(error)[:600]}") from error
        self.kernels = {k.function_name: k for k in program.all_kernels()}

    def allocate(self, size: int) -> Any:
        """A buffer."""
        return self.cl.Buffer(self.context, self.cl.mem_flags.READ_WRITE, size)

    def copy_in(self, buffer: Any, array: Array) -> None:
        """To the device."""
        if array.nbytes:
            self.cl.enqueue_copy(self.queue, buffer, np.ascontiguousarray(array))

    def copy_out(self, array: Array, buffer: Any) -> None:
        """From the device."""
        self.cl.enqueue_copy(self.queue, array, buffer)

    def start(self, entry: str, tasks: int, buffers: Sequence[Any], numbers: Sequence[int]) -> None:
        """In groups; threads beyond the tasks end at once."""
        size = -(-tasks // THREADS) * THREADS
        self.kernels[entry](self.queue, (size,), (THREADS,), *buffers, *map(np.int32, numbers))

    def wait(self) -> None:
        """All of the queue."""
        self.queue.finish()

    def free(self, buffer: Any) -> None:
        """At once, and not when the collector comes by."""
        buffer.release()


opencl = OpenCL()
