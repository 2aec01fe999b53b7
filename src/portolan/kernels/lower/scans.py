"""Carried state: kept in a buffer over all axes but the one it runs along, read and replaced once in each step."""

from __future__ import annotations

from contextlib import ExitStack

from portolan.kernels.ir import Lit, Read, Ref, Type, Write, X, add, mul, product
from portolan.kernels.lower.elements import splat
from portolan.kernels.lower.emitter import At, Emitter
from portolan.kernels.tree import Carry, Expr, Idx, Load, Scan, children, free, rebuilt


def scan(out: Emitter, e: Expr, at: At) -> X:
    """The state at this step."""
    assert isinstance(e, Scan)
    state, inner = _state(out, e)
    wide = out.context.vector in free(e)
    kind = Type("f", out.context.lanes if wide else 1)
    width = out.context.lanes * out.context.vectors if wide else 1
    place: X = Lit(0)
    for name in inner:
        place = add(mul(place, out.size(out.extents[name])), out.env[name])
    offset = add(mul(place, Lit(width)), Lit(at.vector * out.context.lanes if wide else 0))
    if out.known(("scanned", e)) is not None:
        return Read(state.name, "f32", offset, kind)
    before = f"@{e.carry}"
    out.resident[before] = lambda out, load, at: Read(state.name, "f32", offset, kind)
    value = out.let(splat(out.value(_with_state(e.step, e, before), at), kind), "state")
    out.write(Write(state.name, "f32", offset, value))
    return value


def _with_state(step: Expr, e: Scan, name: str) -> Expr:
    """The step, reading the state at all the indices that it depends on in place of the carry."""
    if isinstance(step, Carry) and step.name == e.carry:
        return Load(name, tuple(Idx(n) for n in sorted(free(e))), "f")
    return rebuilt(step, tuple(_with_state(c, e, name) for c in children(step)))


def _state(out: Emitter, e: Scan) -> tuple[Ref, list[str]]:
    """The buffer, zero before the first step, and the indices it has besides those of the task."""
    v = out.context.vector
    inner = sorted(n for n in free(e) if n not in (e.axis, v) and out.level([n]) > 0)
    key = ("state", e)
    found = out.known(key)
    if found is None:
        with out.at_level(0):
            width = out.context.lanes * out.context.vectors if v in free(e) else 1
            sizes = [out.size(out.extents[n]) for n in inner]
            name = out.alloc("state", "f", product([*sizes, Lit(width)]), "workspace")
            with ExitStack() as loops:
                y = loops.enter_context(out.loop("y", Lit(0), product([*sizes, Lit(width)]), note="state"))
                out.write(Write(name, "f32", y, Lit(0.0, Type("f"))))
            found = Ref(name)
            out.keep(key, found)
    assert isinstance(found, Ref)
    return found, inner
