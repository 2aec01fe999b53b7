"""Which schedules are worth a try: made by rules, pruned by a model of registers and ceilings, the likeliest first."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from portolan.core.target import Target
from portolan.kernels.arrays import size_of
from portolan.kernels.lower.nest import Group
from portolan.kernels.lower.schedule import Schedule
from portolan.kernels.lower.stages import apart
from portolan.kernels.tree import Binder, Program, Ranked, Reduce, free, walk

#: Rows and vectors of a tile. Below 8 accumulators the latency of an addition shows.
_TILES = (
    *((8, 2), (6, 4), (12, 2), (4, 4), (6, 2), (4, 2), (2, 4), (1, 4), (1, 2)),
    *((1, 1), (14, 1), (4, 1), (16, 1), (8, 1)),
)
_TASKS = 4


def lanes(target: Target) -> int:
    """Numbers in the vectors of a target: vectors wider than its registers are spilled on every use."""
    if target.has("avx512f"):
        return 16
    return 8 if target.has("avx2") or target.has("avx") else 4


def registers(target: Target) -> int:
    """Vector registers that a program can name."""
    return 32 if target.has("avx512f") or target.arch in ("aarch64", "riscv64") else 16


def default(program: Program, group: Group, target: Target, sizes: Mapping[str, int]) -> Schedule:
    """The schedule that the model likes best."""
    return candidates(program, group, target, sizes)[0]


def candidates(program: Program, group: Group, target: Target, sizes: Mapping[str, int]) -> list[Schedule]:
    """Schedules in the order in which the model would bet on them; at least one."""
    wide, room = lanes(target), registers(target)
    found: list[tuple[float, Schedule]] = []
    for vector, rows in _axes(program, group, sizes):
        for tile_rows, vectors in _TILES:
            schedule = Schedule(vector, rows, wide, tile_rows if rows else 1, vectors if vector else 1)
            if (rows is None and tile_rows > 1) or (vector is None and vectors > 1):
                continue
            schedule = _completed(program, group, schedule, sizes)
            if not _fits(group, schedule, sizes, room):
                continue
            found.append((_cost(group, schedule, sizes), schedule))
    if not found:
        return [Schedule(None, None, 1)]
    found.sort(key=lambda pair: pair[0])
    return list(dict.fromkeys(s for _, s in found))


def _axes(program: Program, group: Group, sizes: Mapping[str, int]) -> list[tuple[str | None, str | None]]:
    """Pairs of vector axis and row axis."""
    if program.stages:
        own = list(apart(program))
        return [(a, None) for a in reversed(own)] or [(None, None)]
    usable = [a for a in group.axes if a not in group.ranks and a != group.scan_axis]
    if group.ranks:
        return [(None, a) for a in reversed(usable)] or [(None, None)]
    pairs: list[tuple[str | None, str | None]] = []
    for vector in reversed(usable):
        rest = [a for a in reversed(usable) if a != vector]
        rows = None if group.scan_axis or not _reused(group, vector) else next(iter(rest), None)
        pairs.append((vector, rows))
    # The last axis has stride 1 in the result; another is worth a look only where the last is narrow.
    return pairs[:1] if pairs and sizes.get(str(pairs[0][0]), 1) >= 16 else pairs or [(None, None)]


def _reused(group: Group, vector: str) -> bool:
    """Whether rows of a tile share anything: a reduction's elements, read again for each of them."""
    return any(isinstance(e, Reduce) for v in group.values for e in walk(v))


def _completed(program: Program, group: Group, schedule: Schedule, sizes: Mapping[str, int]) -> Schedule:
    """The rest of the choices: how many tasks, and how long the blocks are."""
    panels = 1
    if schedule.vector is not None:
        panels = max(1, sizes.get(schedule.vector, 1) // schedule.width)
    others = [a for a in group.axes if a not in (schedule.vector, schedule.rows, group.scan_axis) and a in sizes]
    tasks = panels
    for axis in others:
        tasks *= sizes[axis]
    chunk = 0
    if schedule.rows is not None and tasks < _TASKS:
        rows = sizes[schedule.rows]
        each = -(-rows // _TASKS)
        chunk = max(8 * schedule.tile_rows, -(-each // schedule.tile_rows) * schedule.tile_rows)
    vectors = 2 if schedule.tile_rows <= 8 else 1
    smallest = min((size_of(b.extent, sizes) for b in _staged(group)), default=0)
    if smallest and smallest < 2 * schedule.lanes:
        vectors = 1
    return replace(schedule, chunk=chunk, stage_vectors=vectors, block=1024 if group.ranks else 64)


def _staged(group: Group) -> Iterator[Binder]:
    """The indices along which blocks are filled: of rankings, and of reductions that hold others."""
    for value in group.values:
        for e in walk(value):
            if isinstance(e, Ranked):
                yield e.binder
            elif isinstance(e, Reduce) and not group.ranks and _holds_another(e):
                yield from e.binders


def _holds_another(e: Reduce) -> bool:
    return any(isinstance(x, Reduce) for part in e.body for x in walk(part))


def _fits(group: Group, schedule: Schedule, sizes: Mapping[str, int], room: int) -> bool:
    """Whether the tile is inside the sizes, and its accumulators inside the registers."""
    if schedule.vector is not None and sizes.get(schedule.vector, 0) < schedule.width:
        return schedule.tile_vectors == 1 and schedule.tile_rows == 1
    if schedule.rows is not None and sizes.get(schedule.rows, 0) < schedule.tile_rows:
        return False
    vectors = schedule.tile_vectors if schedule.vector is not None else schedule.stage_vectors
    held = _accumulators(group) * schedule.tile_rows * vectors + vectors + 1
    return held <= room


def _accumulators(group: Group) -> int:
    """Accumulators of one element of the tile."""
    count = 0
    for value in group.values:
        for e in walk(value):
            if isinstance(e, Reduce) and free(e) & set(group.axes[-1:]):
                count = max(count, {"argmax": 2, "argmin": 2, "logsumexp": 2}.get(e.monoid, 1))
    return max(1, count)


def _cost(group: Group, schedule: Schedule, sizes: Mapping[str, int]) -> float:
    """About what an element costs: reads shared by the tile, latency that is not hidden, columns done twice."""
    rows, vectors = schedule.tile_rows, schedule.tile_vectors if schedule.vector else schedule.stage_vectors
    reduces = any(isinstance(e, Reduce) for v in group.values for e in walk(v))
    work = 1.0 + (1.0 / rows + 1.0 / vectors) * 0.5
    if reduces and rows * vectors < 8:
        work *= 8 / (rows * vectors) if group.scan_axis is None else 1.0
    if schedule.vector is not None:
        size = max(1, sizes.get(schedule.vector, 1))
        work *= -(-size // schedule.width) * schedule.width / size
        if group.axes and schedule.vector != group.axes[-1]:
            work *= 4.0
        if _restaged(group, schedule.vector):
            work *= -(-size // schedule.width)
    if schedule.rows is not None:
        size = max(1, sizes.get(schedule.rows, 1))
        work *= -(-size // rows) * rows / size
    return work


def _restaged(group: Group, vector: str) -> bool:
    """Whether every panel of columns computes something dear again that does not depend on the column."""
    for value in group.values:
        for e in walk(value):
            if isinstance(e, Reduce) and vector in free(e):
                for part in e.body:
                    for x in walk(part):
                        if isinstance(x, Reduce) and vector not in free(x):
                            return True
    return False
