"""Stages: an array remade several times, kept in the workspace, a few rows of it at a time where rows stay apart."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack

from portolan.kernels.ir import Do, Lit, Read, Turn, Type, Variant, Write, X, add, mul, product, sub
from portolan.kernels.lower.elements import splat
from portolan.kernels.lower.emitter import At, Emitter
from portolan.kernels.lower.guard import kept
from portolan.kernels.lower.memory import place_of
from portolan.kernels.lower.nest import HANDLERS, Group, decode, finished, store
from portolan.kernels.lower.schedule import Schedule
from portolan.kernels.tree import Expr, Extent, Idx, Load, Program, free, walk


def apart(program: Program) -> tuple[str, ...]:
    """The axes of the staged array along which no element is made of another's."""
    stage = program.stages[0]
    axes = [str(a) for a in program.tensor(stage.tensor).axes]
    loads = [
        e
        for value in (stage.value, *program.values)
        for e in walk(value)
        if isinstance(e, Load) and e.tensor == stage.tensor
    ]
    same = [a for n, a in enumerate(axes) if all(e.index[n] == Idx(a) for e in loads)]
    return tuple(a for a in same if all(a in o.axes for o in program.outputs))


def staged_group(program: Program, group: Group, schedule: Schedule) -> Variant | None:
    """One way through a kernel with stages."""
    stage = program.stages[0]
    axes = [str(a) for a in program.tensor(stage.tensor).axes]
    lone = apart(program)
    mixed = [a for a in axes if a not in lone]
    out = Emitter(program, schedule, HANDLERS)
    out.extents |= {a: a for a in (*axes, *group.axes)}
    tasks = decode(out, [a for a in lone if a != schedule.vector], schedule)
    ranges: dict[str, Extent] = {**{a: a for a in axes}, stage.index: stage.extent}
    value = kept(program, stage.value, ranges)
    width = schedule.width if schedule.vector else 1
    whole = product([*(out.size(a) for a in mixed), Lit(width)])
    name = out.alloc(f"stage_{stage.tensor}", "f", mul(Lit(2), whole), "workspace")
    held = _Held(name, axes, mixed, width)
    own: Expr = Load(stage.tensor, tuple(Idx(a) for a in axes), "f")
    out.roots = (own,)
    simple = _turns(program, schedule, axes, mixed)
    if simple:
        held.turn(out, stage.tensor, out.env[axes[0]], inward=True, base=Lit(0))
    else:
        held.fill(out, own, Lit(0))
    out.roots = (value,)
    with out.loop(stage.index, Lit(0), out.size(stage.extent), binds=[stage.index], extent=stage.extent) as s:
        now = out.let(mul(Do("bitand", (s, Lit(1)), s.type), whole), "now")
        out.resident[stage.tensor] = held.reader(now)
        held.fill(out, value, out.let(sub(whole, now), "then"))
    out.stack[0].known.clear()
    now = out.let(mul(Do("bitand", (out.size(stage.extent), Lit(1)), Type("i")), whole), "now")
    out.resident[stage.tensor] = held.reader(now)
    out.roots = group.values
    if simple and group.values == (own,) and group.axes == tuple(axes) and group.outputs[0].dtype == "f32":
        held.turn(out, group.outputs[0].name, out.env[axes[0]], inward=False, base=now)
        return finished(out, tasks.count)
    with ExitStack() as loops:
        for axis in group.axes:
            if axis not in lone:
                loops.enter_context(out.loop(axis, Lit(0), out.size(axis), binds=[axis], extent=axis))
        store(out, group)
    return finished(out, tasks.count)


def _turns(program: Program, schedule: Schedule, axes: list[str], mixed: list[str]) -> bool:
    """Whether the array is rows of one mixed axis, and its vectors run along the other: whole rows become columns."""
    tensor = program.tensor(program.stages[0].tensor)
    return (
        schedule.vector is not None and [schedule.vector, *mixed] == axes and len(axes) == 2 and tensor.dtype == "f32"
    )


class _Held:
    """The array in the workspace: `[mixed axes][lanes]`, twice."""

    def __init__(self, name: str, axes: list[str], mixed: list[str], width: int) -> None:
        self.name, self.axes, self.mixed, self.width = name, axes, mixed, width

    def fill(self, out: Emitter, value: Expr, base: X) -> None:
        """Computes `value` at every place of the mixed axes into the half that begins at `base`."""
        c = out.context
        with ExitStack() as loops:
            place: X = Lit(0)
            for axis in self.mixed:
                var = loops.enter_context(out.loop(axis, Lit(0), out.size(axis), binds=[axis], extent=axis))
                place = add(mul(place, out.size(axis)), var)
            vectors = range(c.vectors if c.vector else 1)
            made = [out.value(value, At(0, vector)) for vector in vectors]
            for vector, x in zip(vectors, made, strict=True):
                offset = add(base, add(mul(place, Lit(self.width)), Lit(vector * c.lanes if c.vector else 0)))
                lanes = splat(x, Type("f", c.lanes if c.vector else 1))
                out.write(Write(self.name, "f32", offset, lanes))

    def turn(self, out: Emitter, array: str, first: X, *, inward: bool, base: X) -> None:
        """Moves whole rows between an array and the workspace, where they are columns."""
        size, width = out.size(self.mixed[0]), Lit(self.width)
        offset = mul(first, size)
        if inward:
            out.write(Turn(self.name, base, width, array, offset, size, width, size))
        else:
            out.write(Turn(array, offset, size, self.name, base, width, size, width))

    def reader(self, base: X) -> Callable[[Emitter, Expr, At], X]:
        """How elements are read from the half that begins at `base`."""

        def read(out: Emitter, e: Expr, at: At) -> X:
            assert isinstance(e, Load)
            c = out.context
            place: X = Lit(0)
            for axis, part in zip(self.axes, e.index, strict=True):
                if axis in self.mixed:
                    place = add(mul(place, out.size(axis)), place_of(out, part, at))
            wide = c.vector in free(e)
            offset = add(base, add(mul(place, Lit(self.width)), Lit(at.vector * c.lanes if wide else 0)))
            return Read(self.name, "f32", offset, Type("f", c.lanes if wide else 1))

        return read
