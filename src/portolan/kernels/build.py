"""Every kernel of a file: checked, tuned for the sizes it names, and compiled."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from portolan.core import registry
from portolan.core.files import write_whole
from portolan.core.target import Target
from portolan.errors import UnknownName, UsageError
from portolan.kernels.compiler import Compiler, find
from portolan.kernels.cross import ARCHES, Arch, cross
from portolan.kernels.decorated import Kernel
from portolan.kernels.elsewhere import built, here, readiness
from portolan.kernels.language import language as language_of
from portolan.kernels.language import languages
from portolan.kernels.source import read_file
from portolan.kernels.tune import Tuned, recalled, source, tune
from portolan.kernels.work import flops, traffic


def build(
    file: str | Path,
    *,
    target: str = "local",
    arch: str | None = None,
    out: str | Path | None = None,
    seed: int = 0,
    force: bool = False,
    dry_run: bool = False,
    grad: bool = False,
    progress: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Checks, tunes and compiles the kernels of a file. The file is read, not run.

    Args:
        file: the Python file.
        target: where the kernels are to run: `local` is the CPU; the name of a language is what runs it here.
        arch: compile for another processor (`aarch64`, `riscv64`, `riscv64v`, `wasm32`) with zig, without tuning; needs
            `out`.
        out: a folder for the libraries and their source; the cache keeps them in any case.
        seed: of the arrays that are compared and timed.
        force: overwrite what is in `out`.
        dry_run: check the kernels and say what would be done; compile and write nothing.
        grad: the kernels of each one's gradient too.
        progress: told one line at a time.

    Returns:
        The `kernel` object of the contract; each kernel also has `sizes`, `latency`, `schedule`, `trials`, `cached`.
        With `dry_run` also `languages`: of each, what can be done with it here.

    Raises:
        KernelError: a kernel means nothing; the error names its line.
        NoBackend: there is no C compiler, or nothing that runs the language.
        NoResult: a kernel for which no schedule gave a valid program.
    """
    in_language = target in languages()
    if not in_language and target not in (names := registry.TARGETS.names()):
        raise UnknownName("target", target, [*names, *languages()])
    found = registry.TARGETS.get("local" if in_language else target).detect()
    kernels = read_file(Path(file))
    jobs = []
    for item in kernels:
        kernel = Kernel(item.program)
        kernel.sizes.extend(item.sizes)
        for sizes in item.sizes or (kernel.usual(),):
            jobs += [(kernel, sizes), *(_gradient(kernel, sizes) if grad else ())]
    if dry_run:
        return {"kernels": [_planned(k, sizes, found) for k, sizes in jobs], "languages": readiness()}
    if in_language and arch is not None:
        raise UsageError(f"`--arch {arch}` and `--target {target}` are two answers to one question", hint="give one")
    suffix = language_of(target).suffix if in_language else ".so" if arch is None else _arch(arch).suffix
    folder = None if out is None else _folder(Path(out), [k.name + suffix for k, _ in jobs], force)
    if arch is not None:
        if folder is None:
            raise UsageError("kernels for another processor need a folder", hint=f"add `-o kernels-{arch}`")
        return {"kernels": [cross(k.program, sizes, arch, folder) for k, sizes in jobs]}
    if in_language:
        ready = here(target)
        rows = [built(k.program, sizes, target, ready, found, seed=seed, progress=progress) for k, sizes in jobs]
        more: dict[str, Any] = {"language": {"name": target, **ready.to_json()}}
    else:
        compiler, more = find(), {}
        rows = [_built(k, sizes, found, compiler, seed, progress) for k, sizes in jobs]
    if folder is not None:
        for row in rows:
            row["artefact"] = str(_delivered(Path(row["artefact"]), folder, row["name"]))
    return {"kernels": rows, **more}


def emitted(file: str | Path, language: str) -> str:
    """The code of every kernel of a file, for the first sizes it names.

    Raises:
        UnknownName: a language that is not there.
        UnsupportedOperator: a kernel that the language has no words for.
    """
    if language not in ("c", *languages()):
        raise UnknownName("language", language, ["c", *languages()])
    parts = []
    for item in read_file(Path(file)):
        kernel = Kernel(item.program)
        kernel.sizes.extend(item.sizes)
        parts.append(kernel.code(language=language))
    return "\n".join(parts)


def _gradient(kernel: Kernel, sizes: Mapping[str, int]) -> list[tuple[Kernel, Mapping[str, int]]]:
    """The kernels of a gradient, with their sizes."""
    found = kernel.grad()
    return list(zip(found.kernels, found.sizes(sizes), strict=True))


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


def tuned_for(
    kernel: Kernel,
    sizes: Mapping[str, int],
    target: Target,
    compiler: Compiler,
    *,
    seed: int = 0,
    progress: Callable[[str], None] | None = None,
) -> Tuned:
    """What tuning found for these sizes, earlier or now."""
    known = recalled(kernel.program, sizes, target, compiler)
    return known or tune(kernel.program, sizes, target, compiler, seed=seed, progress=progress)


def _built(
    kernel: Kernel,
    sizes: Mapping[str, int],
    target: Target,
    compiler: Compiler,
    seed: int,
    progress: Callable[[str], None] | None,
) -> dict[str, Any]:
    known = recalled(kernel.program, sizes, target, compiler)
    tuned = tuned_for(kernel, sizes, target, compiler, seed=seed, progress=progress)
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
    """Copies a program and what lies beside it: its source, and how it is started."""
    for file in sorted(path.parent.glob(f"{path.stem}.*")):
        write_whole(folder / f"{name}{file.name.removeprefix(path.stem)}", file.read_bytes())
    return folder / f"{name}{path.suffix}"
