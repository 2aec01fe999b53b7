"""Every kernel of a file: checked, tuned for the sizes it names, and compiled."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from portolan.core import registry
from portolan.core.target import Target
from portolan.errors import UnknownName, UsageError
from portolan.kernels.compiler import Compiler, find
from portolan.kernels.cross import ARCHES, Arch, cross
from portolan.kernels.decorated import Kernel
from portolan.kernels.place import write_whole
from portolan.kernels.source import read_file
from portolan.kernels.tune import recalled, source, tune
from portolan.kernels.work import flops, traffic

EMITTED = ("c",)


def build(
    file: str | Path,
    *,
    target: str = "local",
    arch: str | None = None,
    out: str | Path | None = None,
    seed: int = 0,
    force: bool = False,
    dry_run: bool = False,
    progress: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Checks, tunes and compiles the kernels of a file. The file is read, not run.

    Args:
        file: the Python file.
        target: where the kernels are to run; `local`.
        arch: compile for another processor (`aarch64`, `riscv64`, `wasm32`) with zig, without tuning; needs `out`.
        out: a folder for the libraries and their source; the cache keeps them in any case.
        seed: of the arrays that are compared and timed.
        force: overwrite what is in `out`.
        dry_run: check the kernels and say what would be done; compile and write nothing.
        progress: told one line at a time.

    Returns:
        The `kernel` object of the contract; each kernel also has `sizes`, `latency`, `schedule`, `trials`, `cached`.

    Raises:
        KernelError: a kernel means nothing; the error names its line.
        NoBackend: there is no C compiler.
        NoResult: a kernel for which no schedule gave a valid program.
    """
    found = registry.TARGETS.get(target).detect()
    kernels = read_file(Path(file))
    jobs = []
    for item in kernels:
        kernel = Kernel(item.program)
        kernel.sizes.extend(item.sizes)
        jobs += [(kernel, sizes) for sizes in item.sizes or (kernel.usual(),)]
    if dry_run:
        return {"kernels": [_planned(k, sizes, found) for k, sizes in jobs]}
    suffix = ".so" if arch is None else _arch(arch).suffix
    folder = None if out is None else _folder(Path(out), [k.name + suffix for k, _ in jobs], force)
    if arch is not None:
        if folder is None:
            raise UsageError("kernels for another processor need a folder", hint=f"add `-o kernels-{arch}`")
        return {"kernels": [cross(k.program, sizes, arch, folder) for k, sizes in jobs]}
    compiler = find()
    rows = [_built(k, sizes, found, compiler, seed, progress) for k, sizes in jobs]
    if folder is not None:
        for row in rows:
            row["artefact"] = str(_delivered(Path(row["artefact"]), folder, row["name"]))
    return {"kernels": rows}


def emitted(file: str | Path, language: str) -> str:
    """The code of every kernel of a file, for the first sizes it names.

    Raises:
        UsageError: a language that is not there.
    """
    if language not in EMITTED:
        raise UsageError(f"there is no printer for `{language}`", hint=f"known: {', '.join(EMITTED)}")
    parts = []
    for item in read_file(Path(file)):
        kernel = Kernel(item.program)
        kernel.sizes.extend(item.sizes)
        parts.append(kernel.code())
    return "\n".join(parts)


def _planned(kernel: Kernel, sizes: Mapping[str, int], target: Target) -> dict[str, Any]:
    return {
        "name": kernel.name,
        "target": target.id,
        "sizes": dict(sizes),
        "schedule": [s.to_json() for s in kernel.schedules(sizes, target)],
        "max_abs_error": None,
        "seconds_tuning": None,
        "gflops": None,
        "gbytes_per_s": None,
        "artefact": None,
    }


def _built(
    kernel: Kernel,
    sizes: Mapping[str, int],
    target: Target,
    compiler: Compiler,
    seed: int,
    progress: Callable[[str], None] | None,
) -> dict[str, Any]:
    known = recalled(kernel.program, sizes, target, compiler)
    tuned = known or tune(kernel.program, sizes, target, compiler, seed=seed, progress=progress)
    path = compiler.build(source(kernel.program, tuned.schedules))
    seconds = float(tuned.ms["value"]) / 1000
    latency = {**tuned.ms, "unit": "ms", "kind": "measured"}
    return {
        "name": kernel.name,
        "target": target.id,
        "max_abs_error": tuned.max_error,
        "seconds_tuning": 0.0 if known else tuned.seconds,
        "gflops": flops(kernel.program, sizes) / seconds / 1e9,
        "gbytes_per_s": traffic(kernel.program, sizes) / seconds / 1e9,
        "artefact": str(path),
        "sizes": dict(sizes),
        "latency": latency,
        "schedule": [s.to_json() for s in tuned.schedules],
        "trials": {"tried": tuned.trials[0], "failed": tuned.trials[1]},
        "cached": known is not None,
    }


def _arch(name: str) -> Arch:
    if name not in ARCHES:
        raise UnknownName("processor", name, ARCHES)
    return ARCHES[name]


def _folder(folder: Path, names: list[str], force: bool) -> Path:
    taken = [n for n in names if (folder / n).exists()]
    if taken and not force:
        raise UsageError(f"`{folder / taken[0]}` exists", hint="add `--force` to overwrite it")
    return folder


def _delivered(path: Path, folder: Path, name: str) -> Path:
    for suffix in (".so", ".c"):
        write_whole(folder / f"{name}{suffix}", path.with_suffix(suffix).read_bytes())
    return folder / f"{name}.so"
