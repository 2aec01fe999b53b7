"""OpenVINO's door to compiled kernels: one small library of C++ for all kernels, made once for each OpenVINO.

OpenVINO loads operators from libraries that were compiled against its own headers, which its wheel holds, and takes
those of its own release only. The door holds nothing of any kernel: it is told what each takes and where its function
is. So nothing that a model says is compiled, and what was made once serves every model, and travels with bundles to
machines without a compiler.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from portolan.core.carried import Carried
from portolan.core.files import sha256, write_whole
from portolan.core.folders import cache_folder
from portolan.core.native import Library
from portolan.core.running import CompilerError, CompilerLate, compiled, plus
from portolan.core.silence import runtime
from portolan.errors import NoBackend, VerificationFailed

#: The door's name where it travels with kernels, and what is said of it there.
LIBRARY, ABOUT = "openvino_door.so", "openvino_door.json"
_FLAGS = ("-std=c++17", "-O2", "-shared", "-fPIC", "-w")
_SECONDS = 120.0
_TYPES = ("f32", "f16", "bf16", "i8", "i32")


@dataclass(frozen=True)
class Door:
    """The library, for one release of OpenVINO.

    Attributes:
        path: its file.
        version: of OpenVINO, with its build.
    """

    path: Path
    version: str

    def add(self, core: Any, kernels: Sequence[tuple[Carried, Library]]) -> None:
        """Makes operators of kernels in a core."""
        offer = ctypes.CDLL(str(self.path)).portolan_offer
        offer.argtypes = [*[ctypes.c_char_p] * 2, *[ctypes.c_void_p] * 3, *[ctypes.c_int64] * 3, ctypes.c_void_p]
        offer.restype = None
        for kernel, library in kernels:
            table = _table(kernel)
            counts = len(kernel.inputs), len(kernel.outputs), len(kernel.symbols)
            names = kernel.domain.encode(), kernel.name.encode()
            offer(*names, *library.addresses, *counts, (ctypes.c_int64 * len(table))(*table))
        core.add_extension(str(self.path))

    def save(self, folder: Path) -> None:
        """Puts it beside kernels that travel."""
        library = self.path.read_bytes()
        (folder / LIBRARY).write_bytes(library)
        about = {"version": self.version, "sha256": hashlib.sha256(library).hexdigest()}
        (folder / ABOUT).write_text(json.dumps(about, indent=1, sort_keys=True), encoding="utf-8")


def opened(folder: Path | None) -> Door | str:
    """The door for the OpenVINO of this process: the one that came with the kernels, or one compiled here; or why not.

    Raises:
        VerificationFailed: the one that came is not the one that was written.
    """
    version = str(runtime("openvino").__version__)
    return (None if folder is None else _brought(folder, version)) or _made(version)


def _brought(folder: Path, version: str) -> Door | None:
    """The door in a folder of kernels, if it is for this OpenVINO."""
    path, about = folder / LIBRARY, folder / ABOUT
    if not about.exists() and not path.exists():
        return None
    try:
        said = json.loads(about.read_bytes())
        if said["version"] != version:
            return None
        if sha256(path) == said["sha256"]:
            return Door(path, version)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise VerificationFailed(f"`{about}` cannot be read: {error}", hint=_AGAIN) from error
    raise VerificationFailed(f"the library `{path}` is not the one that was compiled", hint=_AGAIN)


_AGAIN = "compile the kernels again: `portolan kernel OPS.py --for MODEL`"


def _made(version: str) -> Door | str:
    """The door in the cache, or compiled now; or why there is none."""
    source = (Path(__file__).parent / "openvino_door.cc").read_text(encoding="utf-8")
    key = hashlib.sha256("\0".join((source, version, platform.machine())).encode()).hexdigest()[:24]
    path = cache_folder() / "kernels" / "doors" / f"openvino-{key}.so"
    if path.is_file():
        return Door(path, version)
    try:
        argv = plus("a compiled extension of OpenVINO")
        refused = path.with_name(f"{key}-{hashlib.sha256(' '.join(argv).encode()).hexdigest()[:12]}.txt")
        if refused.is_file():  # it would say so again, some seconds later
            return refused.read_text(encoding="utf-8")
        try:
            write_whole(path, compiled([*argv, *_FLAGS, *_wheel()], source, ".cc", _SECONDS))
        except CompilerLate as error:
            return error.message
        except CompilerError as error:
            write_whole(refused, error.message.encode())
            return error.message
    except NoBackend as error:
        return error.message
    return Door(path, version)


def _wheel() -> list[str]:
    """How to compile against the wheel's headers and libraries."""
    home = Path(str(runtime("openvino").__file__)).parent
    libraries = [next(iter(sorted((home / "libs").glob(f"{name}.so*"))), None) for name in ("libopenvino", "libtbb")]
    missing = next((n for n, found in zip(("OpenVINO", "oneTBB"), libraries, strict=True) if found is None), None)
    if missing is not None or not (home / "include").is_dir():
        raise NoBackend(f"this OpenVINO came without its headers or its {missing or 'C++'} library", hint=None)
    return [f"-I{home / 'include'}", *(str(library) for library in libraries)]


def _table(kernel: Carried) -> list[int]:
    """Types, ranks and axes of all arguments and results, then whether each symbol may be 0: as the door reads them."""
    rows: list[int] = []
    for side in (*kernel.inputs, *kernel.outputs):
        axes = [-1 - a if isinstance(a, int) else kernel.symbols.index(a) for a in side.axes]
        rows += [_TYPES.index(side.dtype), len(axes), *axes]
    return [*rows, *(int(symbol in kernel.empty) for symbol in kernel.symbols)]
