"""Kernels for other processors: compiled by `zig cc`, which brings every target's headers; tried under qemu or Node.

There is no tuning for a processor that is not here: the layout is the one that the model likes best.
"""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from portolan.core.files import write_whole
from portolan.core.running import CompilerError, run
from portolan.core.target import Target
from portolan.errors import NoBackend, VerificationFailed
from portolan.kernels.arrays import dtype_of, result_shapes, widened
from portolan.kernels.candidates import default
from portolan.kernels.compiler import FLAGS
from portolan.kernels.lower.nest import groups
from portolan.kernels.oracle import evaluate
from portolan.kernels.printers.c import function_name
from portolan.kernels.tree import Program
from portolan.kernels.tune import source
from portolan.kernels.verify import TOLERANCE, Case, difference, odd_cases

_SECONDS = 300.0


@dataclass(frozen=True)
class Arch:
    """A kind of processor that kernels can be compiled for.

    Attributes:
        arch: of the target record; the width of vectors follows from it and from the features.
        features: as in a target record.
        triple: zig's name for it, for a library.
        runs: zig's name for a program that needs nothing else, to try it.
        by: what runs that program here, with its arguments.
        suffix: of the library's file.
        flags: of its own, for libraries and programs.
        library: for libraries only.
    """

    arch: str
    features: tuple[str, ...]
    triple: str
    runs: str
    by: tuple[str, ...]
    suffix: str = ".so"
    flags: tuple[str, ...] = ()
    library: tuple[str, ...] = ("-shared", "-fPIC")


_WASI = """
import { WASI } from "node:wasi";
import { readFileSync } from "node:fs";
const wasi = new WASI({ version: "preview1", returnOnExit: true });
const { instance } = await WebAssembly.instantiate(readFileSync(process.argv[1]), wasi.getImportObject());
process.exitCode = wasi.start(instance);
"""
_NODE = ("node", "--no-warnings", "--input-type=module", "-e", _WASI, "--")
_REACTOR = ("-mexec-model=reactor", "-Wl,--export=malloc")
ARCHES: Mapping[str, Arch] = {
    "aarch64": Arch("aarch64", ("asimd",), "aarch64-linux-gnu", "aarch64-linux-musl", ("qemu-aarch64",)),
    "riscv64": Arch("riscv64", (), "riscv64-linux-gnu", "riscv64-linux-musl", ("qemu-riscv64",)),
    "riscv64v": Arch(
        "riscv64",
        ("v",),
        "riscv64-linux-gnu",
        "riscv64-linux-musl",
        ("qemu-riscv64", "-cpu", "rv64,v=true"),
        flags=("-mcpu=baseline_rv64+v",),
    ),
    "wasm32": Arch(
        "wasm32", ("simd128",), "wasm32-wasi", "wasm32-wasi", _NODE, ".wasm", flags=("-msimd128",), library=_REACTOR
    ),
}
_PROGRAM = """
#include <stdio.h>
#include <stdlib.h>
/* stdin: count of sizes, sizes, count of arrays, bytes of each, number of arguments, their bytes. stdout: results. */
static int64_t number(void) { int64_t n = 0; if (fread(&n, 8, 1, stdin) != 1) exit(2); return n; }
int main(void) {
  int64_t sizes[64] = {0}, bytes[128], count = number();
  for (int64_t i = 0; i < count; i++) sizes[i] = number();
  int64_t arrays = number(), given;
  void *place[128];
  for (int64_t i = 0; i < arrays; i++) bytes[i] = number();
  given = number();
  for (int64_t i = 0; i < arrays; i++) {
    place[i] = malloc(bytes[i] + 1);
    if (i < given && fread(place[i], 1, bytes[i], stdin) != (size_t)bytes[i]) exit(2);
  }
  void *space = aligned_alloc(64, (NAME_workspace(sizes) + 127) / 64 * 64);
  NAME(place, sizes, space, 0, NAME_tasks(sizes));
  for (int64_t i = given; i < arrays; i++) fwrite(place[i], 1, bytes[i], stdout);
  return 0;
}
"""


def zig() -> tuple[str, ...]:
    """How `zig cc` is started: the PyPI package of this interpreter, else the one on the path.

    Raises:
        NoBackend: there is none.
    """
    if importlib.util.find_spec("ziglang") is not None:
        return (sys.executable, "-m", "ziglang", "cc")
    if (path := shutil.which("zig")) is not None:
        return (path, "cc")
    raise NoBackend("compiling for another processor needs zig, which is not there", hint="pip install ziglang")


def _compile(argv: Sequence[str], code: str, flags: Sequence[str], out: Path) -> None:
    file = out.with_suffix(".c")
    file.write_text(code, encoding="utf-8")
    shared = [f for f in FLAGS if f not in ("-shared", "-fPIC")]
    command = [*argv, *shared, *flags, "-o", str(out), str(file), "-lm"]
    ended, text = run(command, _SECONDS, "zig cc")
    if ended or not out.is_file():
        said = next((line for line in text.splitlines() if "error" in line), text.strip()[-300:])
        raise CompilerError(f"`zig cc` ended with code {ended}: {said}")


def cross(program: Program, sizes: Mapping[str, int], arch: str, folder: Path) -> dict[str, Any]:
    """Compiles a kernel for another processor into `folder`, and tries it where what runs it is installed.

    Returns:
        A row of the `kernel` object; `max_abs_error` is null where nothing could run it.

    Raises:
        NoBackend: zig is not there.
        CompilerError: it could not be compiled.
        VerificationFailed: it differs from the oracle there.
    """
    found, argv = ARCHES[arch], zig()
    target = Target(arch, "emulated", found.arch, found.features, 1, 0)
    schedules = [default(program, g, target, sizes) for g in groups(program)]
    code = source(program, schedules)
    error = None
    with tempfile.TemporaryDirectory(prefix="portolan-cross-") as name:
        library = Path(name) / f"{program.name}{found.suffix}"
        _compile(
            argv, code, ("-target", found.triple, *found.flags, *found.library, *_exports(program, found)), library
        )
        if shutil.which(found.by[0]) is not None:
            binary = Path(name) / "tried"
            whole = code + _PROGRAM.replace("NAME", function_name(program.name))
            _compile(argv, whole, ("-target", found.runs, "-static", *found.flags), binary)
            cases = odd_cases(program, schedules[0], np.random.default_rng(0))
            error = max(_tried([*found.by, str(binary)], program, case) for case in cases)
        path = folder / library.name
        write_whole(path, library.read_bytes())
        write_whole(path.with_suffix(".c"), code.encode())
    return {
        "name": program.name,
        "target": arch,
        "max_abs_error": error,
        "seconds_tuning": None,
        "gflops": None,
        "gbytes_per_s": None,
        "artefact": str(path),
        "sizes": dict(sizes),
        "schedule": [s.to_json() for s in schedules],
    }


def _exports(program: Program, arch: Arch) -> tuple[str, ...]:
    """A module for WebAssembly shows only what is named."""
    entry = function_name(program.name)
    names = (entry, f"{entry}_tasks", f"{entry}_workspace") if arch.suffix == ".wasm" else ()
    return tuple(f"-Wl,--export={name}" for name in names)


def _tried(command: Sequence[str], program: Program, case: Case) -> float:
    """Runs one case under the emulator; its error."""
    shapes = result_shapes(program, case.sizes)
    dtypes = [dtype_of(o) for o in program.outputs]
    counts = [int(np.prod(s)) * d.itemsize for s, d in zip(shapes, dtypes, strict=True)]
    sizes = [case.sizes[s] for s in program.symbols]
    bytes_of = [*(a.nbytes for a in case.arrays), *counts]
    head = np.array([len(sizes), *sizes, len(bytes_of), *bytes_of, len(case.arrays)], "<i8").tobytes()
    data = head + b"".join(a.tobytes() for a in case.arrays)
    try:
        done = subprocess.run(command, input=data, capture_output=True, timeout=_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise VerificationFailed(f"kernel `{program.name}` did not end under `{command[0]}`") from None
    if done.returncode or len(done.stdout) != sum(counts):
        raise VerificationFailed(f"kernel `{program.name}` ended with code {done.returncode} under `{command[0]}`")
    expected = evaluate(program, [widened(t, a) for t, a in zip(program.inputs, case.arrays, strict=True)])
    worst, place = 0.0, 0
    for tensor, shape, dtype, count, want in zip(program.outputs, shapes, dtypes, counts, expected, strict=True):
        got = np.frombuffer(done.stdout[place : place + count], dtype).reshape(shape)
        place += count
        off = difference(widened(tensor, got), want)
        if not off <= TOLERANCE[tensor.dtype]:
            raise VerificationFailed(
                f"kernel `{program.name}` differs from the oracle by {off:.2g} under `{command[0]}`"
            )
        worst = max(worst, off)
    return worst
