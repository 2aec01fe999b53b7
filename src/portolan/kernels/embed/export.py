"""Kernels written as ONNX models that hold them as functions, each checked against the oracle in a worker."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from portolan.core.files import write_whole
from portolan.errors import UsageError
from portolan.kernels.lower.schedule import Schedule
from portolan.kernels.source import read_file
from portolan.kernels.tree import Program
from portolan.kernels.verify import AGENT, Judge, odd_cases
from portolan.worker.session import Worker

_SUFFIX = ".onnx"


def export(
    file: str | Path,
    out: str | Path,
    *,
    force: bool = False,
    dry_run: bool = False,
    progress: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Writes each kernel of a file as an ONNX model of one node, which calls it as a function of standard operators.

    Args:
        file: the Python file; it is read, not run.
        out: a `.onnx` file for the one kernel of the file, or a folder for `NAME.onnx` of each.
        force: overwrite what is there.
        dry_run: check the functions and write nothing.
        progress: told one line at a time.

    Returns:
        `{"kernels": [{name, onnx, operators, max_abs_error}]}`.

    Raises:
        UsageError: several kernels for one file, or a file that is there.
        VerificationFailed: a function differs from the oracle.
    """
    programs = [found.program for found in read_file(Path(file))]
    paths = _paths(Path(out), programs)
    taken = [p for p in paths if p.exists()]
    if taken and not force:
        raise UsageError(f"`{taken[0]}` exists", hint="add `--force` to overwrite it")
    rows = []
    with Worker(module=AGENT) as worker:
        for program, path in zip(programs, paths, strict=True):
            if progress is not None:
                progress(f"{program.name}: checking the function against the oracle")
            rows.append(_exported(program, None if dry_run else path, worker))
    return {"kernels": rows}


def _paths(out: Path, programs: Sequence[Program]) -> list[Path]:
    if out.suffix == _SUFFIX:
        if len(programs) > 1:
            raise UsageError(
                f"`{out}` is one file, and there are {len(programs)} kernels", hint=f"give a folder: `{out.stem}`"
            )
        return [out]
    return [out / f"{p.name}{_SUFFIX}" for p in programs]


def _exported(program: Program, path: Path | None, worker: Worker) -> dict[str, Any]:
    from portolan.core.protos import operators
    from portolan.kernels.embed.function import model

    made = model(program)
    error = checked(program, made.SerializeToString(), worker)
    if path is not None:
        write_whole(path, made.SerializeToString())
    return {
        "name": program.name,
        "onnx": None if path is None else str(path),
        "operators": sum(operators(made).values()),
        "max_abs_error": error,
    }


def checked(program: Program, model: bytes, worker: Worker, libraries: Sequence[Path] = ()) -> float:
    """The largest relative error of a one-node model in ONNX Runtime, with libraries or on the function's body.

    Raises:
        VerificationFailed: it differs from the oracle.
        WorkerError: it does not load or run.
    """
    cases = odd_cases(program, Schedule(None, None, 4), np.random.default_rng(0))
    with TemporaryDirectory(prefix="portolan-onnx-") as folder:
        path = Path(folder) / f"model{_SUFFIX}"
        path.write_bytes(model)
        name = f"{program.name} {len(libraries)}"
        return Judge(program, cases, worker).model(name, path, libraries)
