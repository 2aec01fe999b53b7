"""A compiled variant against the oracle, in a process of its own, on odd and real sizes, before it is timed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from portolan.errors import VerificationFailed
from portolan.kernels.arrays import Array, narrowed, result_shapes, size_of, widened
from portolan.kernels.arrays import dtype_of as held_as
from portolan.kernels.build_tree import KIND_OF_DTYPE
from portolan.kernels.lower.schedule import Schedule
from portolan.kernels.oracle import evaluate
from portolan.kernels.sampled import MOST_SHIFTED, places, shifts
from portolan.kernels.tree import Op, Program, Scan, Tensor, extents_of, walk
from portolan.worker.session import Worker, patience

AGENT = "portolan.kernels.agent"
#: What `max |result - oracle| / max |oracle|` may be, by the type of a result.
TOLERANCE: Mapping[str, float] = {"f32": 1e-4, "f16": 2e-3, "bf16": 2e-2, "i8": 0.0, "i32": 0.0}
_MOST_POINTS = 400_000
_HUGE = 1e30
#: Results that are all smaller have no relative error in float32: a product of many of them is 0 there.
_TINY = 1e-30
#: Extents up to which the numbers of a kernel with an `exp` keep their size.
_SHORT = 8
_SECONDS = 60.0


@dataclass(frozen=True)
class Case:
    """Arguments, their sizes, and the places of the results that are compared (all where none are named)."""

    sizes: Mapping[str, int]
    arrays: tuple[Array, ...]
    at: Mapping[str, tuple[int, ...]] | None = None


def random_arrays(program: Program, sizes: Mapping[str, int], rng: np.random.Generator) -> tuple[Array, ...]:
    """Arguments: normal numbers, and small whole ones that also serve as indices.

    Where the kernel has an `exp`, they are the smaller the longer the axes, so that sums of squares stay near one:
    `exp(-sum(...))` of larger ones is 0 in float32 and not in the oracle's float64, and no schedule could be right.
    """
    steep = any(isinstance(e, Op) and e.name == "exp" for v in program.values for e in walk(v))
    scale = 0.5 * min(1.0, (_SHORT / max([1, *sizes.values()])) ** 0.5 if steep else 1.0)
    shifted = shifts(program)
    return tuple(
        _random(t, [size_of(a, sizes) for a in t.axes], sizes, scale, rng)
        if t.name not in shifted
        else rng.integers(0, MOST_SHIFTED, [size_of(a, sizes) for a in t.axes]).astype(held_as(t))
        for t in program.inputs
    )


def _random(
    tensor: Tensor, shape: Sequence[int], sizes: Mapping[str, int], scale: float, rng: np.random.Generator
) -> Array:
    if KIND_OF_DTYPE[tensor.dtype] == "i":
        top = 8 if tensor.dtype == "i8" else max([2, *sizes.values()])
        return rng.integers(-7 if tensor.dtype == "i8" else 0, top, shape).astype(held_as(tensor))
    return narrowed(tensor, rng.standard_normal(shape, np.float32) * np.float32(scale))


def odd_cases(program: Program, schedule: Schedule, rng: np.random.Generator, number: int = 6) -> list[Case]:
    """Sizes around the edges of tiles, vectors and blocks, and random ones: each small enough to compare whole."""
    edges = {1, 2, 3, 5, 7, schedule.lanes - 1, schedule.lanes, schedule.lanes + 1, schedule.tile_rows + 1}
    wide = {schedule.width - 1, schedule.width, schedule.width + 1, 2 * schedule.width + 5, schedule.block + 3}
    choices = sorted(e for e in edges | wide if e > 0)
    found = [dict.fromkeys(program.symbols, 1)]
    while len(found) < number:
        sizes = {s: int(rng.choice(choices)) for s in program.symbols}
        if schedule.vector in sizes and len(found) % 2:
            sizes[str(schedule.vector)] = schedule.width + int(rng.integers(0, schedule.width))
        if schedule.rows in sizes and len(found) % 2:
            sizes[str(schedule.rows)] = schedule.step + int(rng.integers(0, 4))
        # More than a few stages mean shifts that no integer holds.
        sizes |= {str(s.extent): int(rng.integers(1, 6)) for s in program.stages if s.extent in sizes}
        found.append(_shrunk(program, sizes, rng))
    return [Case(s, random_arrays(program, s, rng)) for s in found]


def _shrunk(program: Program, sizes: dict[str, int], rng: np.random.Generator) -> dict[str, int]:
    """Sizes whose index space the oracle can make whole."""
    while np.prod([float(v) for v in sizes.values()]) > _MOST_POINTS:
        name = str(rng.choice(list(sizes)))
        sizes[name] = max(1, sizes[name] // 2)
    return sizes


def real_case(program: Program, sizes: Mapping[str, int], rng: np.random.Generator) -> Case:
    """The sizes that count, compared at some places of each result's axes (all along a scan).

    Gathers read inside of their arrays, as they do in use: what is outside costs nothing, and would decide a race.
    """
    arrays = _inside(program, sizes, random_arrays(program, sizes, rng), rng)
    if program.stages:
        return Case(sizes, arrays)
    scans = {e.axis for v in program.values for e in walk(v) if isinstance(e, Scan)}
    extents = extents_of(program)
    free = [a for o in program.outputs for a in o.axes if str(a) not in scans]
    inner = float(np.prod([float(v) for s, v in sizes.items() if s not in free or s in scans]))
    each = max(2, int((20 * _MOST_POINTS / max(inner, 1.0)) ** (1 / max(1, len(set(free))))))
    at = {}
    for axis in {str(a) for a in free}:
        size = size_of(extents[axis], sizes)
        picks = {0, size - 1, size // 2, *rng.integers(0, size, max(0, min(each, 24) - 3)).tolist()}
        at[axis] = tuple(sorted(picks))[: max(each, 2)] if len(picks) > each else tuple(sorted(picks))
    return Case(sizes, arrays, at)


def _inside(
    program: Program, sizes: Mapping[str, int], arrays: Sequence[Array], rng: np.random.Generator
) -> tuple[Array, ...]:
    """The arguments, but where one says where another is read, with places that are there."""
    ranges, fixed = places(program, sizes), shifts(program)
    made = list(arrays)
    for number, tensor in enumerate(program.inputs):
        if tensor.name in ranges and tensor.name not in fixed and tensor.dtype != "i8":
            low, high = ranges[tensor.name]
            made[number] = narrowed(tensor, np.asarray(rng.uniform(low, high, arrays[number].shape), np.float32))
    return tuple(made)


class Judge:
    """Holds the oracle's answers for cases, and runs variants on them in a worker."""

    def __init__(self, program: Program, cases: Sequence[Case], worker: Worker, language: str = "c") -> None:
        self.program, self.cases, self.worker, self.language = program, cases, worker, language
        self._expected = [evaluate(program, _numbers(program, c.arrays), c.at) for c in cases]

    def model(self, name: str, path: Path, libraries: Sequence[Path] = ()) -> float:
        """Loads a model of one call of the kernel into ONNX Runtime and compares it on all cases, as `error` does.

        Raises:
            VerificationFailed, WorkerError: as `error`.
        """
        given = [str(p) for p in libraries]
        self.worker.ask("model", timeout=patience(_SECONDS), name=name, path=str(path), libraries=given)
        return max(self._answer(name, c, e) for c, e in zip(self.cases, self._expected, strict=True))

    def _answer(self, name: str, case: Case, expected: Sequence[Array]) -> float:
        reply = self.worker.ask(
            "answer",
            timeout=patience(_SECONDS),
            tensors={f"a{n}": np.asarray(a) for n, a in enumerate(case.arrays)},
            name=name,
            dtypes=[t.dtype for t in self.program.inputs],
        )
        return self._worst(case, reply.tensors, expected)

    def error(self, name: str, path: Path) -> float:
        """Loads a variant under `name` and compares it on all cases; its largest relative error.

        Raises:
            VerificationFailed: it differs by more than its types allow.
            WorkerError: it crashed, hung or wrote outside of its results.
        """
        fields: dict[str, Any] = {
            "name": name,
            "path": str(path),
            "language": self.language,
            "kernel": self.program.name,
            "symbols": list(self.program.symbols),
        }
        self.worker.ask("load", timeout=patience(_SECONDS), **fields)
        return max(self._case(name, c, e) for c, e in zip(self.cases, self._expected, strict=True))

    def _case(self, name: str, case: Case, expected: Sequence[Array]) -> float:
        results = specs(self.program, case.sizes)
        tensors = {f"a{n}": a for n, a in enumerate(case.arrays)}
        reply = self.worker.ask(
            "run",
            timeout=patience(_SECONDS),
            tensors=tensors,
            name=name,
            sizes=dict(case.sizes),
            results=results,
        )
        return self._worst(case, reply.tensors, expected)

    def _worst(self, case: Case, tensors: Mapping[str, Array], expected: Sequence[Array]) -> float:
        worst = 0.0
        for number, (tensor, want) in enumerate(zip(self.program.outputs, expected, strict=True)):
            got = widened(tensor, tensors[f"r{number}"])
            if case.at is not None:
                got = got[np.ix_(*(case.at.get(str(a), range(got.shape[n])) for n, a in enumerate(tensor.axes)))]
            found = difference(got, want)
            if not found <= TOLERANCE[tensor.dtype]:
                sizes = ", ".join(f"{k}={v}" for k, v in case.sizes.items())
                raise VerificationFailed(f"it differs from the oracle by {found:.2g} at {sizes}")
            worst = max(worst, found)
        return worst


def specs(program: Program, sizes: Mapping[str, int]) -> list[list[Any]]:
    """Shape and type of each result, as a worker is told."""
    shapes = result_shapes(program, sizes)
    return [[list(shape), held_as(o).name] for o, shape in zip(program.outputs, shapes, strict=True)]


def _numbers(program: Program, arrays: Sequence[Array]) -> list[Array]:
    return [widened(t, a) for t, a in zip(program.inputs, arrays, strict=True)]


def difference(got: Array, want: Array) -> float:
    """`max |got - want| / max |want|`; infinite where one is a number and the other is not."""
    if want.size == 0:
        return 0.0
    want = want.astype(np.float64)
    got = got.astype(np.float64)
    usable = ~(np.abs(want) > _HUGE) | np.isinf(want)
    finite = np.isfinite(want) & usable
    same = np.isfinite(got) == np.isfinite(want)
    signs = (got == want) | (np.isnan(got) & np.isnan(want)) | np.isfinite(want)
    if not (same & signs)[usable].all():
        return float("inf")
    if not finite.any():
        return 0.0
    top = float(np.abs(want[finite]).max())
    off = float(np.abs(got[finite] - want[finite]).max())
    return off / top if top > _TINY else off
