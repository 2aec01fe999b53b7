"""Monoids on typed expressions: where an accumulator starts, how it takes an element, what it gives at the end."""

from __future__ import annotations

from collections.abc import Sequence

from portolan.kernels.functions import identity
from portolan.kernels.ir import Acc, Do, Lit, Ref, Type, Update, X
from portolan.kernels.lower.elements import call, compare, select, splat
from portolan.kernels.lower.emitter import Emitter
from portolan.kernels.tree import Reduce

#: Monoids whose parts along the lanes of one vector can be joined at the end.
LANEWISE = ("sum", "prod", "max", "min", "any", "all", "logsumexp")


def begin(out: Emitter, e: Reduce, kind: Type) -> tuple[Ref, ...]:
    """Accumulators at the identity."""
    match e.monoid:
        case "argmax" | "argmin":
            base = "f" if e.body[0].kind == "f" else "i"
            worst = Lit(identity(e.monoid[3:], base), Type(base))  # type: ignore[arg-type]
            best = out.acc(splat(worst, Type(base, kind.lanes)), "best")  # type: ignore[arg-type]
            return best, out.acc(splat(Lit(-1), Type("i", kind.lanes)), "place")
        case "logsumexp" | "softmean":
            top = out.acc(splat(Lit(float("-inf"), Type("f")), kind), "top")
            rest = [out.acc(splat(Lit(0.0, Type("f")), kind)) for _ in range(1 if e.monoid == "logsumexp" else 2)]
            return top, *rest
        case _:
            return (out.acc(splat(Lit(identity(e.monoid, e.kind), Type(kind.base)), kind)),)


def take(out: Emitter, e: Reduce, accs: Sequence[Ref], values: Sequence[X], mask: X | None, where: X) -> None:
    """One element more; nothing where the mask does not hold. `where` is the index of the element."""
    kind = accs[0].type
    match e.monoid:
        case "sum" | "prod":
            name, neutral = ("add", 0) if e.monoid == "sum" else ("mul", 1)
            value = _masked(values[0], mask, Lit(float(neutral) if kind.base == "f" else neutral, Type(kind.base)))
            out.write(Update(accs[0].name, call(name, accs[0], value)))
        case "any" | "all":
            value = values[0] if mask is None else _truth(e.monoid, values[0], mask)
            out.write(Update(accs[0].name, call("or" if e.monoid == "any" else "and", accs[0], splat(value, kind))))
        case "max" | "min":
            value = _masked(values[0], mask, Lit(identity(e.monoid, e.kind), Type(kind.base)))
            out.write(Update(accs[0].name, better(e.monoid, splat(value, kind), accs[0])))
        case "argmax" | "argmin":
            _take_place(out, e, accs, values[0], mask, where)
        case _:
            _take_weighted(out, accs, values, mask)


def better(monoid: str, value: X, acc: X) -> X:
    """The larger (smaller) of both; never NaN if `acc` is not."""
    return call("larger" if monoid == "max" else "smaller", value, acc)


def _masked(value: X, mask: X | None, neutral: X) -> X:
    return value if mask is None else select(mask, value, neutral)


def _truth(monoid: str, value: X, mask: X) -> X:
    if monoid == "any":
        return call("and", value, mask)
    return call("or", value, Do("not", (mask,), mask.type))


def _take_place(out: Emitter, e: Reduce, accs: Sequence[Ref], value: X, mask: X | None, where: X) -> None:
    best, place = accs
    value = out.let(splat(value, best.type))
    wins = compare("gt" if e.monoid == "argmax" else "lt", value, best)
    if mask is not None:
        wins = call("and", wins, mask)
    wins = out.let(wins, "wins")
    out.write(Update(best.name, select(wins, value, best)))
    out.write(Update(place.name, select(wins, splat(where, place.type), place)))


def _take_weighted(out: Emitter, accs: Sequence[Ref], values: Sequence[X], mask: X | None) -> None:
    """The online form: what was summed before is scaled down when a larger score turns up."""
    top, kind = accs[0], accs[0].type
    score = out.let(splat(_masked(values[0], mask, Lit(float("-inf"), Type("f"))), kind), "score")
    new = out.let(better("max", score, top), "new")
    base = out.let(settled(new), "base")
    shrink = out.let(call("exp", call("sub", top, base)), "shrink")
    weight = out.let(call("exp", call("sub", score, base)), "weight")
    out.write(Update(accs[1].name, call("add", call("mul", accs[1], shrink), weight)))
    if len(accs) == 3:
        value = _masked(values[1], mask, Lit(0.0, Type("f")))
        taken = call("mul", weight, splat(value, kind))
        out.write(Update(accs[2].name, call("add", call("mul", accs[2], shrink), taken)))
    out.write(Update(top.name, new))


def settled(top: X) -> X:
    """The largest score, 0 while there is none: exponentials of differences stay defined."""
    return select(compare("eq", top, Lit(float("-inf"), Type("f"))), Lit(0.0, Type("f")), top)


def finish(out: Emitter, e: Reduce, accs: Sequence[X]) -> X:
    """What the accumulators amount to."""
    if e.monoid == "logsumexp":
        return out.let(call("add", call("log", accs[1]), settled(accs[0])))
    if e.monoid == "softmean":
        return out.let(mean(accs[1], accs[2]))
    return accs[-1]


def mean(total: X, acc: X) -> X:
    """`acc / total`; 0 where nothing was summed."""
    total = splat(total, acc.type)
    zero = Lit(0.0, Type("f"))
    return select(compare("eq", total, zero), zero, call("div", acc, total))


def across(out: Emitter, e: Reduce, accs: Sequence[Ref]) -> list[X]:
    """Accumulators that hold a part in each lane, each joined into one number."""
    if e.monoid == "logsumexp":
        top = out.let(Do("across_max", (accs[0],), Type("f")), "top")
        shrink = call("exp", call("sub", accs[0], splat(settled(top), accs[0].type)))
        return [top, out.let(Do("across_sum", (call("mul", accs[1], shrink),), Type("f")))]
    return [out.let(Do(f"across_{e.monoid}", (accs[0],), Type(accs[0].type.base)))]


__all__ = ["LANEWISE", "Acc", "across", "begin", "better", "finish", "mean", "settled", "take"]
