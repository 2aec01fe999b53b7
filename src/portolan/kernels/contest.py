"""Kernels raced in ONNX Runtime against what they would take the place of, in a process of their own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from portolan.core.carried import Carried
from portolan.core.extensions import place as place_of
from portolan.core.extensions import there
from portolan.core.target import Target
from portolan.errors import DiskFull, OutOfMemory, PortolanError, WorkerTimeout
from portolan.kernels import place
from portolan.kernels.compiler import find
from portolan.kernels.embed.carry import placed
from portolan.kernels.embed.ort import door
from portolan.kernels.verify import AGENT, TOLERANCE, difference
from portolan.measure.lock import measuring
from portolan.worker.session import Worker, patience

_SECONDS, _ROUNDS = 0.01, 9
_PATIENCE = 60.0


def remembered(
    operator: Carried, code: str, case: Mapping[str, Any], target: Target, ratio: Callable[[Path, Worker], float]
) -> float:
    """The ratio of a kernel to what it would replace, from an earlier race or one run now; then the library is kept.

    Args:
        operator: the kernel.
        code: its C, without a door.
        case: what else decides the ratio.
        target: this machine.
        ratio: races the compiled library in a worker.

    Returns:
        0 for a kernel that cannot be compiled, is wrong or crashes: it is no candidate.

    Raises:
        NoBackend: there is no C compiler.
    """
    compiler, code = find(), f"{code}\n{door(operator)}"
    key = place.digest("raced", code, case, target.fingerprint, compiler.version, _runtime())
    if (known := place.recall(place.RACED, key)) is not None and there(operator.name, target):
        return float(known["ratio"])
    try:
        path = compiler.build(code)
        with Worker(module=AGENT) as worker:
            found = ratio(path, worker)
        reason = None
    except (DiskFull, OutOfMemory, WorkerTimeout):
        return 0.0  # for want of what there may be next time: not remembered
    except PortolanError as error:
        found, reason = 0.0, error.message
    else:
        _kept(operator, path, place_of(operator.name, target))
    place.remember(place.RACED, key, {**case, "ratio": found, "reason": reason})
    return found


def contested(worker: Worker, plain: Path, kernel: Path, library: Path, cases: Sequence[Sequence[np.ndarray]]) -> float:
    """How many times as fast one model is as another, on one thread; 0 where their answers differ.

    Args:
        worker: runs both.
        plain, kernel: the models; the second calls the operator of `library`.
        cases: arguments of both, on each of which they are compared. They are timed on the first.
    """
    for name, file, libraries in (("plain", plain, []), ("kernel", kernel, [str(library)])):
        worker.ask("model", timeout=patience(_PATIENCE), name=name, path=str(file), libraries=libraries)
    every = [{f"a{n}": array for n, array in enumerate(arrays)} for arrays in cases]
    given: dict[str, Any] = {"dtypes": ["f32"] * len(every[0])}
    for tensors in every:
        results = [
            worker.ask("answer", timeout=patience(_PATIENCE), tensors=tensors, name=name, **given).tensors
            for name in ("plain", "kernel")
        ]
        if any(difference(results[1][name], results[0][name]) > TOLERANCE["f32"] for name in results[0]):
            return 0.0
    with measuring():
        reply = worker.ask(
            "contest", timeout=patience(_PATIENCE), tensors=every[0], names=["plain", "kernel"], seconds=_SECONDS,
            rounds=_ROUNDS, **given,
        )  # fmt: skip
    ms = reply.fields["ms"]
    return float(np.median(np.asarray(ms["plain"]) / np.asarray(ms["kernel"])))


def _kept(operator: Carried, library: Path, folder: Path) -> None:
    """Puts a compiled kernel where runtimes look for it, whole or not at all."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folder.parent, prefix=".part-") as scratch:
        made = placed(Path(scratch) / folder.name, [(operator, library)]).path
        if folder.is_dir():  # compiled again, by another compiler or for another race
            folder.rename(Path(scratch) / "old")
        made.rename(folder)


def _runtime() -> str:
    try:
        return version("onnxruntime")
    except PackageNotFoundError:
        return "none"
