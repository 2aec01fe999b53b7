"""Which schedules are worth a try: made by rules, pruned by a model of registers and ceilings, the likeliest first."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace

from portolan.core.target import Target
from portolan.kernels.arrays import dtype_of, size_of
from portolan.kernels.lower import inner
from portolan.kernels.lower.loops import streamed
from portolan.kernels.lower.nest import Group
from portolan.kernels.lower.schedule import Schedule
from portolan.kernels.lower.stages import apart
from portolan.kernels.lower.tables import gathered, parts
from portolan.kernels.tree import Program, Ranked, Reduce, free, walk
from portolan.kernels.work import taken

#: Rows and vectors of a tile. Below 8 accumulators the latency of an addition shows.
_TILES = (
    *((8, 2), (6, 4), (12, 2), (4, 4), (5, 4), (6, 3), (4, 3), (6, 2), (4, 2), (2, 4), (1, 4), (1, 2)),
    *((1, 1), (14, 1), (4, 1), (16, 1), (8, 1), (5, 3), (2, 2), (2, 1), (2, 3)),
)
_TASKS = 4
#: Bytes of a core's own cache, where a target does not say.
_NEAR = 2**20
#: Numbers in the tables of one tile: they have to stay in the nearest caches.
_TABLE = 64_000
#: Elements of one task where a task covers all columns.
_ELEMENTS = 16_384
#: Elements of a block: enough that starting one costs little, and few enough to stay in the nearest cache.
_BLOCKS = (64, 256)


def lanes(target: Target) -> int:
    """Numbers in the vectors of a target: vectors wider than its registers are spilled on every use."""
    if target.has("avx512f"):
        return 16
    if target.has("avx2", "avx"):
        return 8
    # A vector unit that may be missing: without it the compiler makes numbers alone of vectors, and spills them.
    optional = {"riscv64": "v", "wasm32": "simd128"}.get(target.arch)
    return 1 if optional is not None and not target.has(optional) else 4


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
    for bare in _axes(program, group, sizes, wide, target):
        for tile_rows, vectors in _TILES:
            if not _sensible(bare, tile_rows, vectors):
                continue
            tiled = replace(bare, tile_rows=tile_rows, tile_vectors=vectors)
            for schedule in _completed(program, group, tiled, sizes):
                if _fits(group, schedule, sizes, room):
                    found.append((_cost(group, schedule, sizes), schedule))
    if not found:
        return [Schedule(None, None, 1)]
    found.sort(key=lambda pair: pair[0])
    return list(dict.fromkeys(s for _, s in found))


def _sensible(bare: Schedule, rows: int, vectors: int) -> bool:
    if (bare.rows is None and rows > 1) or (bare.vector is None and vectors > 1):
        return False
    if bare.table:
        # Rows side by side hide the latency of additions; what is asked for ahead leaves the nearest cache before it is
        # used if there are more than two. Random arguments, whose places are outside mostly, cannot tell.
        return rows == 2 if bare.ahead else rows in (2, 4)
    return rows in (1, 2, 4) or not bare.within


def _axes(program: Program, group: Group, sizes: Mapping[str, int], wide: int, target: Target) -> list[Schedule]:
    """Vector axis, row axis, and how a task goes through them: the parts of a schedule that tiles do not change."""
    near = target.caches.get("L2", _NEAR)

    def bare(vector: str | None, rows: str | None, *, within: bool = False) -> Schedule:
        ahead = rows is not None and not within and _streamed(program, group, vector, rows, sizes) > near
        return Schedule(vector, rows, wide, ahead=ahead, within=within)

    def table(vector: str, rows: str) -> list[Schedule]:
        # By size: random arguments, whose places are outside mostly, cannot tell what asking ahead is worth. It needs
        # the places of rows that come later, which a table of rows has.
        ahead = _reached(program, group, vector, rows, sizes) > max(target.caches.values(), default=0)
        found = [Schedule(vector, rows, wide, table="rows", ahead=ahead)] if sizes.get(rows, 0) >= wide else []
        if not ahead and _joinable(group, vector, rows, sizes, wide):
            found.append(Schedule(vector, rows, wide, table="inner"))
        return found

    if program.stages:
        own = list(apart(program))
        return [bare(a, None) for a in reversed(own)] or [bare(None, None)]
    usable = [a for a in group.axes if a not in group.ranks and a != group.scan_axis]
    if group.ranks:
        return [bare(None, a) for a in reversed(usable)] or [bare(None, None)]
    found: list[Schedule] = []
    tabled: list[Schedule] = []
    for vector in reversed(usable):
        rest = [a for a in reversed(usable) if a != vector]
        nearest = next(iter(rest), None)
        within = not group.scan_axis and not _mixed(group, vector)
        shares = within or (not group.scan_axis and _reused(group, vector))
        found.append(bare(vector, nearest if shares else None, within=within))
        if not group.scan_axis and sizes.get(vector, 1) >= wide:
            tabled += [t for a in rest if _tabled(group, vector, a, sizes, wide) for t in table(vector, a)]
    # The last axis has stride 1 in the result; another is worth a look only where the last is narrow.
    if found and sizes.get(str(found[0].vector), 1) >= 16:
        return [*[t for t in tabled if t.vector == found[0].vector], found[0]]
    return [*tabled, *found] or [bare(None, None)]


def _mixed(group: Group, vector: str) -> bool:
    """Whether a reduction depends on the column: else columns share all reductions."""
    return any(isinstance(e, Reduce) and vector in free(e) for v in group.values for e in walk(v))


def _reached(program: Program, group: Group, vector: str, rows: str, sizes: Mapping[str, int]) -> int:
    """Bytes of the arrays that are read at computed places."""
    return _bytes(program, {n for e in _gathering(group, vector, rows) for n in gathered(e, vector, rows)}, sizes)


def _streamed(program: Program, group: Group, vector: str | None, rows: str, sizes: Mapping[str, int]) -> int:
    """Bytes of the arrays of which rows read one element after another, for each panel of columns again."""
    reductions = [e for v in group.values for e in walk(v) if isinstance(e, Reduce)]
    found = (x.tensor for e in reductions for x in streamed([e], e.binders[-1].index, rows, vector))
    return _bytes(program, set(found), sizes)


def _bytes(program: Program, names: Collection[str], sizes: Mapping[str, int]) -> int:
    tensors = [t for t in program.inputs if t.name in names]
    return sum(dtype_of(t).itemsize * math.prod(size_of(a, sizes) for a in t.axes) for t in tensors)


def _gathering(group: Group, vector: str, rows: str) -> list[Reduce]:
    """The reductions of elements from places that depend on the row."""
    return [e for v in group.values for e in walk(v) if isinstance(e, Reduce) and gathered(e, vector, rows)]


def _tabled(group: Group, vector: str, rows: str, sizes: Mapping[str, int], wide: int) -> bool:
    """Whether elements are gathered from places that depend on the row, and the tables of a tile are small."""
    held = 0
    for e in _gathering(group, vector, rows):
        held += wide * (len(parts(e, vector, rows)) + 1) * math.prod(size_of(b.extent, sizes) for b in e.binders)
    return 0 < held <= _TABLE


def _joinable(group: Group, vector: str, rows: str, sizes: Mapping[str, int], wide: int) -> bool:
    """Whether the indices of the reductions that gather fill half a vector at least."""
    found = _gathering(group, vector, rows)
    counts = [math.prod(size_of(b.extent, sizes) for b in inner.split(e.binders)[0]) for e in found]
    return all(map(inner.takes, found)) and min(counts) * 2 >= wide


def _reused(group: Group, vector: str) -> bool:
    """Whether rows of a tile share anything: a reduction's elements, read again for each of them."""
    return any(isinstance(e, Reduce) for v in group.values for e in walk(v))


def _completed(program: Program, group: Group, schedule: Schedule, sizes: Mapping[str, int]) -> Iterator[Schedule]:
    """The rest of the choices: how many tasks, how long the blocks are, and how they are filled."""
    panels = 1
    if schedule.vector is not None:
        panels = max(1, sizes.get(schedule.vector, 1) // schedule.width)
    others = [a for a in group.axes if a not in (schedule.vector, schedule.rows, group.scan_axis) and a in sizes]
    tasks = panels
    for axis in others:
        tasks *= sizes[axis]
    chunk, tile = 0, schedule.step
    if schedule.within:
        columns = sizes.get(str(schedule.vector), 1)
        tile = schedule.width if schedule.rows is None else tile
        each = _ELEMENTS if schedule.rows is None else _ELEMENTS // columns
        yield replace(schedule, chunk=max(1, each // tile) * tile)
        return
    if schedule.rows is not None and tasks < _TASKS:
        rows = sizes[schedule.rows]
        each = -(-rows // _TASKS)
        chunk = max(8 * schedule.tile_rows, -(-each // tile) * tile)
    span = min((_span(e, sizes) for e in _staged(group)), default=0)
    if group.ranks or not span:
        narrow = span and span < 2 * schedule.lanes
        vectors = 2 if schedule.tile_rows <= 8 and not narrow else 1
        yield replace(schedule, chunk=chunk, stage_vectors=vectors, block=1024 if group.ranks else _BLOCKS[0])
        return
    for vectors in (1, 2):
        # All that counts for a tile in one block, where it fits: each block more rescales what is summed.
        need = span + schedule.tile_rows + 2 * vectors * schedule.lanes
        block = -(-need // _BLOCKS[0]) * _BLOCKS[0]
        if span >= vectors * schedule.lanes or vectors == 1:
            yield replace(schedule, chunk=chunk, stage_vectors=vectors, block=min(block, _BLOCKS[1]))


def _span(e: Reduce | Ranked, sizes: Mapping[str, int]) -> int:
    """About how many elements of a reduction count for one result."""
    binder = e.binder if isinstance(e, Ranked) else e.binders[0]
    size = size_of(binder.extent, sizes)
    if e.where is None:
        return size
    ranges = {name: name for name in free(e.where) if name in sizes}
    return max(1, round(size * taken(e.where, {**ranges, binder.index: binder.extent}, sizes)))


def _staged(group: Group) -> Iterator[Reduce | Ranked]:
    """What is computed in blocks: rankings, and reductions that hold others."""
    for value in group.values:
        for e in walk(value):
            if isinstance(e, Ranked) or (isinstance(e, Reduce) and not group.ranks and _holds_another(e)):
                yield e


def _holds_another(e: Reduce) -> bool:
    return any(isinstance(x, Reduce) for part in e.body for x in walk(part))


def _fits(group: Group, schedule: Schedule, sizes: Mapping[str, int], room: int) -> bool:
    """Whether the tile is inside the sizes, and its accumulators inside the registers."""
    if schedule.vector is not None and sizes.get(schedule.vector, 0) < schedule.width:
        return schedule.tile_vectors == 1 and schedule.tile_rows == 1
    if schedule.rows is not None and sizes.get(schedule.rows, 0) < schedule.step:
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
    if schedule.within:
        # Rows side by side hide the latency of reductions; without one, a few vectors are enough.
        work = {1: 1.3, 2: 1.1, 4: 1.0}[rows] if reduces else {1: 1.0, 2: 1.05, 4: 1.1}[rows]
        work *= {1: 1.1, 2: 1.0, 4: 1.0}.get(vectors, 1.1)
    elif reduces and rows * vectors < 8 and not schedule.table:
        work *= 8 / (rows * vectors) if group.scan_axis is None else 1.0
    if schedule.vector is not None:
        size = max(1, sizes.get(schedule.vector, 1))
        work *= -(-size // schedule.width) * schedule.width / size
        if group.axes and schedule.vector != group.axes[-1]:
            work *= 4.0
        if _restaged(group, schedule.vector):
            work *= -(-size // schedule.width)
    if schedule.table:
        # Most is computed for a vector of rows, or of elements, at once: these lie side by side in memory.
        work *= 0.14 if schedule.table == "rows" else 0.12
    elif (span := min((_span(e, sizes) for e in _staged(group)), default=0)) and not group.ranks:
        work *= 1.0 + 0.5 * schedule.stage_vectors * schedule.lanes / span
        work *= 1.2 if rows * schedule.stage_vectors < 5 else 1.0
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
