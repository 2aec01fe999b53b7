"""NVIDIA's driver, by its own library: which GPUs there are, and the calls that kernels make.

`libcuda` and not `nvidia-smi`: it is there wherever a program can compute, and it counts devices as CUDA's runtimes do,
with CUDA_VISIBLE_DEVICES and MIG. Calls into it can hang where a GPU is lost, so whoever only wants to know asks
`asked`, which calls it from another process for a bounded time.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import subprocess
import sys
from ctypes import byref, c_int, c_size_t, c_uint, c_void_p
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from portolan.core.target import Device
from portolan.errors import NoBackend

VARIABLE = "PORTOLAN_LIBCUDA"
#: Seconds that the driver gets for an answer: a machine of eight GPUs without persistence mode takes some.
SECONDS = 20.0
_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR
_MODULE = re.compile(r"Kernel Module.*?\s(\d+\.\d+(?:\.\d+)?)\s")
_ASK = "import sys; sys.path.insert(0, sys.argv[1]); from portolan.core.cuda import main; main()"
#: What opens where programs can reach a GPU: Linux, the Windows Subsystem for Linux, Jetson.
_FILES = ("nvidia[0-9]*", "dxg", "nvhost-gpu")


class Driver:
    """`libcuda`, initialised.

    Raises:
        NoBackend: there is no driver, or it does not work.
    """

    def __init__(self) -> None:
        try:
            self.library = ctypes.CDLL(os.environ.get(VARIABLE, "libcuda.so.1"))
        except OSError as error:
            raise NoBackend("there is no NVIDIA driver (libcuda.so.1)") from error
        version = c_int()
        self.call("cuInit", c_uint(0))
        self.call("cuDriverGetVersion", byref(version))
        #: The newest CUDA that it runs.
        self.version = f"{version.value // 1000}.{version.value % 1000 // 10}"

    def call(self, name: str, *args: Any) -> None:
        """Calls a function of the driver.

        Raises:
            NoBackend: it answered with an error, or has no such function.
        """
        try:
            code = self.library[name](*args)
        except AttributeError as error:
            raise NoBackend(f"the NVIDIA driver is too old: it has no `{name}`") from error
        if code:
            text = ctypes.c_char_p()
            self.library["cuGetErrorName"](c_int(code), byref(text))
            raise NoBackend(f"`{name}` failed: {(text.value or b'?').decode()} ({code})")

    def count(self) -> int:
        """How many GPUs this process may use."""
        found = c_int()
        self.call("cuDeviceGetCount", byref(found))
        return found.value

    def name(self, index: int) -> str:
        """What the maker calls a GPU."""
        text = ctypes.create_string_buffer(128)
        self.call("cuDeviceGetName", text, c_int(128), self._handle(index))
        return text.value.decode(errors="replace")

    def device(self, index: int, module: str = "") -> Device:
        """One GPU; `module` is the version of the kernel's part of the driver."""
        memory, handle = c_size_t(), self._handle(index)
        self.call("cuDeviceTotalMem_v2", byref(memory), handle)
        pair = []
        for attribute in _MAJOR, _MINOR:
            value = c_int()
            self.call("cuDeviceGetAttribute", byref(value), c_int(attribute), handle)
            pair.append(str(value.value))
        return Device("cuda", index, self.name(index), memory.value, ".".join(pair), module, self.version)

    def use(self, index: int) -> None:
        """Makes a GPU's primary context this thread's own, the one that other runtimes of the process share."""
        context, handle = c_void_p(), self._handle(index)
        self.call("cuDevicePrimaryCtxRetain", byref(context), handle)
        self.call("cuCtxSetCurrent", context)

    def _handle(self, index: int) -> c_int:
        handle = c_int()
        self.call("cuDeviceGet", byref(handle), c_int(index))
        return handle


@dataclass(frozen=True)
class Found:
    """The GPUs that a program here can use, or why there are none where one is plugged in."""

    devices: tuple[Device, ...] = ()
    reason: str | None = None


def visible(root: Path) -> bool:
    """Whether anything says that a GPU is there. Where nothing does, nobody waits for a driver."""
    return bool(os.environ.get(VARIABLE)) or any(any((root / "dev").glob(name)) for name in _FILES)


def asked() -> Found:
    """What the driver says, in a process of its own; asked once by each process that wants to know."""
    return _asked(os.environ.get(VARIABLE), os.environ.get("CUDA_VISIBLE_DEVICES"), SECONDS)


@lru_cache(maxsize=8)
def _asked(library: str | None, chosen: str | None, seconds: float) -> Found:
    del library, chosen  # the other process reads them where we did; they are here to be part of the key
    source = str(Path(__file__).resolve().parents[2])
    command = [sys.executable, "-I", "-S", "-c", _ASK, source]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)
        told = json.loads(done.stdout.strip().rpartition("\n")[2])
        return Found(tuple(Device(**device) for device in told["devices"]), told["reason"])
    except subprocess.TimeoutExpired:
        return Found(reason=f"the NVIDIA driver did not answer within {seconds:g} s")
    except OSError as error:
        return Found(reason=f"the NVIDIA driver could not be asked: {error}")
    except (ValueError, KeyError, TypeError):
        return Found(reason=f"asking the NVIDIA driver ended with code {done.returncode}")


def main() -> None:
    """Prints what `asked` reads."""
    try:
        driver = Driver()
        module = _module(Path("/proc/driver/nvidia/version"))
        found = Found(tuple(driver.device(index, module) for index in range(driver.count())))
        if not found.devices:
            found = Found(reason="the NVIDIA driver sees no GPU")
    except NoBackend as error:
        found = Found(reason=error.message)
    print(json.dumps(asdict(found)))


def _module(path: Path) -> str:
    """The version of the kernel's part of the driver; empty where there is no such file, as under Windows."""
    try:
        match = _MODULE.search(path.read_text(encoding="utf-8", errors="replace"))
    except OSError:
        return ""
    return match[1] if match else ""
