"""Affine forms over indices and extents: what a kernel reads, proved before it runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from portolan.kernels.tree import Expr, Ext, Extent, Idx, Num, Op, conjuncts

#: An extent's symbol as a term, apart from the index of the same name.
_MARK = "#"


@dataclass(frozen=True)
class Affine:
    """`constant` plus terms; a term is an index `k`, or `#k` for the extent of the axis `k`."""

    constant: int
    terms: tuple[tuple[str, int], ...] = ()

    @classmethod
    def of(cls, constant: int, terms: Mapping[str, int]) -> Affine:
        """With zero terms left out, in the order of names."""
        return cls(constant, tuple(sorted((k, v) for k, v in terms.items() if v)))

    def __add__(self, other: Affine) -> Affine:
        terms = dict(self.terms)
        for name, factor in other.terms:
            terms[name] = terms.get(name, 0) + factor
        return Affine.of(self.constant + other.constant, terms)

    def times(self, factor: int) -> Affine:
        """Every part multiplied."""
        return Affine.of(self.constant * factor, {k: v * factor for k, v in self.terms})

    def __sub__(self, other: Affine) -> Affine:
        return self + other.times(-1)

    @property
    def indices(self) -> dict[str, int]:
        """Factors of indices."""
        return {k: v for k, v in self.terms if not k.startswith(_MARK)}


def extent(value: Extent) -> Affine:
    """An extent as a form."""
    return Affine(value) if isinstance(value, int) else Affine(0, ((_MARK + value, 1),))


def affine(e: Expr) -> Affine | None:
    """`e` as an affine form, or None when it is none."""
    match e:
        case Num(value=value, kind="i"):
            return Affine(int(value))
        case Idx(name=name):
            return Affine(0, ((name, 1),))
        case Ext(symbol=symbol):
            return extent(symbol)
        case Op(name="neg", args=(a,)):
            form = affine(a)
            return form and form.times(-1)
        case Op(name="add" | "sub" | "mul" as name, args=(a, b)):
            return _joined(name, affine(a), affine(b))
        case _:
            return None


def _joined(name: str, a: Affine | None, b: Affine | None) -> Affine | None:
    if a is None or b is None:
        return None
    if name == "mul":
        if not a.terms:
            return b.times(a.constant)
        return a.times(b.constant) if not b.terms else None
    return a + b if name == "add" else a - b


def facts(where: Iterable[Expr]) -> tuple[Affine, ...]:
    """Forms that are at least 0 wherever the conditions hold."""
    found: list[Affine] = []
    for condition in (c for w in where for c in conjuncts(w)):
        if not isinstance(condition, Op) or len(condition.args) != 2:
            continue
        a, b = affine(condition.args[0]), affine(condition.args[1])
        if a is None or b is None:
            continue
        one = Affine(1)
        forms = {"le": (b - a,), "lt": (b - a - one,), "ge": (a - b,), "gt": (a - b - one,), "eq": (a - b, b - a)}
        found += forms.get(condition.name, ())
    return tuple(found)


def lowest(form: Affine, ranges: Mapping[str, Extent]) -> Affine:
    """The least value of `form` over its indices (each from 0 to its extent - 1), a form over extents."""
    low = Affine.of(form.constant, {k: v for k, v in form.terms if k.startswith(_MARK)})
    for name, factor in form.indices.items():
        if factor < 0:
            low = low + (extent(ranges[name]) - Affine(1)).times(factor)
    return low


def never_negative(form: Affine, ranges: Mapping[str, Extent], known: Iterable[Affine] = ()) -> bool:
    """Whether `form` is at least 0 wherever all `known` forms are.

    Extents are at least 1 where an element is looked at at all. The proof subtracts one or two of the known forms; what
    it does not find is "no", not "false".
    """
    facts = (Affine(0), *known)
    if any(set(f.indices) - set(ranges) for f in (form,)):
        return False
    usable = [f for f in facts if not set(f.indices) - set(ranges)]
    return any(_sure(lowest(form - f - g, ranges)) for f in usable for g in usable)


def _sure(low: Affine) -> bool:
    # Every extent is at least 1, so a positive factor of one counts at least that much.
    return all(v > 0 for _, v in low.terms) and low.constant + sum(v for _, v in low.terms) >= 0


def inside(e: Expr, size: Extent, ranges: Mapping[str, Extent], known: Iterable[Affine] = ()) -> tuple[bool, bool]:
    """Whether the index `e` is proved to be at least 0, and below `size`; (False, False) for what is not affine."""
    form = affine(e)
    if form is None:
        return (True, True) if isinstance(e, Op) and _bits(e, size, ranges) else (False, False)
    known = tuple(known)
    top = extent(size) - Affine(1) - form
    return never_negative(form, ranges, known), never_negative(top, ranges, known)


def _bits(e: Op, size: Extent, ranges: Mapping[str, Extent]) -> bool:
    """Whether bits taken of an index leave it inside: `a & b` is from 0 to either of them that is not negative."""
    if e.name != "bitand":
        return False
    return any(all(inside(part, size, ranges)) for part in e.args)
