"""CUDA: compiled by nvcc, no GPU needed for that; run through the driver's own library, with no toolkit's."""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from ctypes import byref, c_int, c_size_t, c_uint, c_uint64, c_void_p
from functools import lru_cache
from pathlib import Path
from typing import Any

from portolan.core.cuda import Driver
from portolan.core.running import CompilerError, run
from portolan.errors import NoBackend
from portolan.kernels.device import Array, OnDevice
from portolan.kernels.language import Here, Language
from portolan.kernels.plan import Plan
from portolan.kernels.printers.cuda import BLOCK, CUDAPrinter

_SECONDS = 120.0
#: Machine code for Hopper, and PTX that the driver of any GPU since Ampere compiles when it loads it.
_GENERATED = ("arch=compute_90,code=sm_90", "arch=compute_80,code=compute_80")
_FIX = "install the CUDA toolkit (apt install nvidia-cuda-toolkit), or name nvcc: PORTOLAN_NVCC=/path/to/nvcc"


class CUDA(Language):
    """One file of machine code for all sizes."""

    name, about, suffix, built = "cuda", "CUDA C++, for NVIDIA GPUs since Ampere", ".cu", ".fatbin"
    shares = True

    def printer(self) -> CUDAPrinter:
        """CUDA C++."""
        return CUDAPrinter()

    def probe(self) -> Here:
        """Nvcc compiles anywhere; a driver and a GPU are needed to run."""
        compiler = _nvcc()
        if compiler is None:
            return Here("print", reason="nvcc is not there", fix=_FIX)
        said = subprocess.run([compiler, "--version"], capture_output=True, text=True, timeout=60, check=False).stdout
        version = "nvcc " + (found[1] if (found := re.search(r"release ([\d.]+)", said)) else "?")
        try:
            driver = Driver()
            if not driver.count():
                raise NoBackend("the NVIDIA driver sees no GPU")
            device = driver.name(0)
        except (NoBackend, OSError) as error:
            fix = "run it where an NVIDIA driver and GPU are"
            return Here("compile", version, reason=f"compiled only: {error}", fix=fix)
        return Here("time", f"{version}, {device}, driver {driver.version}")

    def compile(self, source: Path, out: Path) -> None:
        """By nvcc."""
        compiler = _nvcc()
        if compiler is None:
            raise NoBackend("compiling CUDA needs nvcc, which is not there", hint=_FIX)
        made = out.with_suffix(f".{os.getpid()}.part")
        command = [compiler, "-fatbin", "-O3", *(f"-gencode={g}" for g in _GENERATED), "-o", str(made), str(source)]
        try:
            code, said = run(command, _SECONDS)
            if code or not made.is_file():
                raise CompilerError(f"`nvcc` ended with code {code}: {said.strip()[-600:]}")
            made.replace(out)
        finally:
            made.unlink(missing_ok=True)

    def load(self, path: Path, plan: Plan) -> OnDevice:
        """On the first GPU."""
        return _Loaded(path, plan)


def _nvcc() -> str | None:
    """The compiler that PORTOLAN_NVCC names, else the one on the path."""
    return shutil.which(os.environ.get("PORTOLAN_NVCC", "nvcc"))


@lru_cache(maxsize=1)
def _driver() -> Driver:
    driver = Driver()
    driver.use(0)
    return driver


class _Loaded(OnDevice):
    """A module on the first GPU."""

    def __init__(self, path: Path, plan: Plan) -> None:
        super().__init__(plan)
        self.driver, self.module = _driver(), c_void_p()
        self.driver.call("cuModuleLoadData", byref(self.module), path.read_bytes())
        self.functions: dict[str, c_void_p] = {}
        for nest in plan.nests:
            for step in nest:
                function = self.functions[step.entry] = c_void_p()
                self.driver.call("cuModuleGetFunction", byref(function), self.module, step.entry.encode())

    def allocate(self, size: int) -> Any:
        """Memory of the GPU."""
        place = c_uint64()
        self.driver.call("cuMemAlloc_v2", byref(place), c_size_t(size))
        return place

    def copy_in(self, buffer: Any, array: Array) -> None:
        """To the GPU."""
        if array.nbytes:
            self.driver.call("cuMemcpyHtoD_v2", buffer, c_void_p(array.ctypes.data), c_size_t(array.nbytes))

    def copy_out(self, array: Array, buffer: Any) -> None:
        """From the GPU."""
        self.driver.call("cuMemcpyDtoH_v2", c_void_p(array.ctypes.data), buffer, c_size_t(array.nbytes))

    def start(self, entry: str, tasks: int, buffers: Sequence[Any], numbers: Sequence[int]) -> None:
        """In blocks; threads beyond the tasks end at once."""
        held = [*buffers, *map(c_int, numbers)]
        args = (c_void_p * len(held))(*(ctypes.addressof(h) for h in held))
        sizes = (c_uint(n) for n in (-(-tasks // BLOCK), 1, 1, BLOCK, 1, 1, 0))
        self.driver.call("cuLaunchKernel", self.functions[entry], *sizes, c_void_p(), args, c_void_p())

    def wait(self) -> None:
        """All that was started."""
        self.driver.call("cuCtxSynchronize")

    def free(self, buffer: Any) -> None:
        """At once."""
        self.driver.call("cuMemFree_v2", buffer)


cuda = CUDA()
