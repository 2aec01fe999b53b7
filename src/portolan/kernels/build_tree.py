"""Nodes with their kinds worked out and the obvious simplified: what the parser calls."""

from __future__ import annotations

from portolan.kernels.functions import OPS
from portolan.kernels.tree import (
    Expr,
    Kind,
    Num,
    Op,
    Ranked,
    Reduce,
    Scan,
    Tensor,
    children,
    free,
    rebuilt,
    renamed,
)

KIND_OF_DTYPE: dict[str, Kind] = {"f32": "f", "f16": "f", "bf16": "f", "i8": "i", "i32": "i"}
_UNROLLED_POWER = 4


def op(name: str, *args: Expr) -> Expr:
    """An element function of arguments whose kinds are known to fit; integers become floats where one is needed."""
    function = OPS[name]
    if name == "pow" and (small := _small_power(*args)) is not None:
        return small
    values = [a for a in args if a.kind != "b"]
    wide: Kind = "f" if function.takes == "f" or any(a.kind == "f" for a in values) or name == "div" else "i"
    if function.takes in ("f", "n", "bnn") and name not in ("float", "int") and values:
        args = tuple(_widened(a, wide) for a in args)
    kind: Kind = wide if function.result == "same" else function.result  # type: ignore[assignment]
    if name == "float" and args[0].kind == "f":
        return args[0]
    if name == "int" and args[0].kind == "i":
        return args[0]
    if name == "neg" and isinstance(args[0], Num):
        return Num(-args[0].value, args[0].kind)
    return _shifted(name, args, kind)


def _widened(e: Expr, kind: Kind) -> Expr:
    if e.kind == "b" or e.kind == kind:
        return e
    return Num(float(e.value), "f") if isinstance(e, Num) else Op("float", (e,), "f")


def _small_power(base: Expr, power: Expr) -> Expr | None:
    """A small whole power as products; a half as a root."""
    if isinstance(power, Op) and power.name == "float":
        power = power.args[0]
    if not isinstance(power, Num):
        return None
    if power.value == 0.5:
        return op("sqrt", base)
    if power.value == -0.5:
        return op("div", Num(1.0, "f"), op("sqrt", base))
    if power.value in range(1, _UNROLLED_POWER + 1) and power.kind == "i":
        result = base
        for _ in range(int(power.value) - 1):
            result = op("mul", result, base)
        return result
    return None


def _shifted(name: str, args: tuple[Expr, ...], kind: Kind) -> Expr:
    """Division by a power of two as a shift, and its remainder as a mask: a division costs twenty additions."""
    if name in ("floordiv", "mod") and (power := _log2(args[1])) is not None:
        if name == "floordiv":
            return Op("shr", (args[0], power), "i")
        return Op("bitand", (args[0], Op("sub", (args[1], Num(1, "i")), "i")), "i")
    return Op(name, args, kind)


def _log2(e: Expr) -> Expr | None:
    match e:
        case Num(value=value, kind="i") if value > 0 and int(value) & (int(value) - 1) == 0:
            return Num(int(value).bit_length() - 1, "i")
        case Op(name="shl", args=(Num(value=1), power)):
            return power
        case Op(name="mul", args=(a, b)):
            left, right = _log2(a), _log2(b)
            return None if left is None or right is None else Op("add", (left, right), "i")
        case _:
            return None


def load_kind(tensor: Tensor) -> Kind:
    """What an element of `tensor` is computed as."""
    return KIND_OF_DTYPE[tensor.dtype]


def apart(e: Expr, taken: frozenset[str]) -> Expr:
    """`e` with every index that a reduction inside brings in named apart from `taken` and from those around it."""
    match e:
        case Reduce(binders=binders):
            names = {}
            for binder in binders:
                names[binder.index] = _fresh(binder.index, taken)
            body, where = e.body, e.where
            for old, new in names.items():
                if old != new:
                    body = tuple(renamed(b, old, new) for b in body)
                    where = None if where is None else renamed(where, old, new)
            inner = taken | set(names.values())
            bound = tuple(type(b)(names[b.index], b.extent) for b in binders)
            return Reduce(
                e.monoid,
                bound,
                None if where is None else apart(where, inner),
                tuple(apart(b, inner) for b in body),
                e.kind,
            )
        case Ranked(binder=binder):
            new = _fresh(binder.index, taken)
            where = None if e.where is None else apart(renamed(e.where, binder.index, new), taken | {new})
            ranked = apart(renamed(e.body, binder.index, new), taken | {new})
            return Ranked(e.n, e.largest, e.part, type(binder)(new, binder.extent), where, ranked, e.rank, e.kind)
        case Scan():
            return Scan(e.carry, e.axis, apart(e.step, taken | free(e)), e.kind)
        case _:
            return rebuilt(e, tuple(apart(c, taken) for c in children(e)))


def _fresh(name: str, taken: frozenset[str]) -> str:
    number, new = 0, name
    while new in taken:
        number += 1
        new = f"{name}_{number}"
    return new
