"""Sums of products under conditions: the form in which derivatives travel, and how one is summed along indices."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from portolan.kernels.bounds import Affine, affine
from portolan.kernels.build_tree import op
from portolan.kernels.derive.rules import ONE, ZERO
from portolan.kernels.tree import (
    Binder,
    Expr,
    Ext,
    Extent,
    Idx,
    Num,
    Op,
    Reduce,
    children,
    conjuncts,
    free,
    rebuilt,
)


@dataclass(frozen=True)
class Term:
    """A product of `factors` where all of `where` hold, and 0 elsewhere."""

    where: tuple[Expr, ...] = ()
    factors: tuple[Expr, ...] = ()

    def times(self, *factors: Expr) -> Term:
        """With further factors; conditions of a factor that is a choice against 0 become the term's own."""
        where, made = list(self.where), list(self.factors)
        for factor in factors:
            for f in _split(factor):
                if isinstance(f, Op) and f.name == "where" and f.args[2] == ZERO:
                    where += conjuncts(f.args[0])
                    made += _split(f.args[1])
                elif f != ONE:
                    made.append(f)
        return Term(tuple(dict.fromkeys(where)), tuple(made))

    def under(self, *conditions: Expr) -> Term:
        """With further conditions."""
        return Term(tuple(dict.fromkeys((*self.where, *conditions))), self.factors)

    @property
    def free(self) -> frozenset[str]:
        """The indices that it mentions."""
        return frozenset().union(*(free(e) for e in (*self.where, *self.factors)))

    def expr(self) -> Expr:
        """The term as an expression."""
        value = product(self.factors)
        condition = joined(self.where)
        return value if condition is None else op("where", condition, value, ZERO)


def _split(e: Expr) -> list[Expr]:
    return [f for arg in e.args for f in _split(arg)] if isinstance(e, Op) and e.name == "mul" else [e]


def product(factors: Sequence[Expr]) -> Expr:
    """The factors multiplied."""
    result: Expr | None = None
    for factor in factors:
        result = factor if result is None else op("mul", result, factor)
    return ONE if result is None else op("float", result)


def joined(conditions: Iterable[Expr]) -> Expr | None:
    """Conditions joined with `and`."""
    result: Expr | None = None
    for condition in conditions:
        result = condition if result is None else Op("and", (result, condition), "b")
    return result


def total(terms: Sequence[Term]) -> Expr:
    """The terms added."""
    result: Expr = ZERO
    for number, term in enumerate(terms):
        result = op("add", result, term.expr()) if number else term.expr()
    return result


def one(terms: Sequence[Term]) -> Term:
    """The terms as one."""
    return terms[0] if len(terms) == 1 else Term().times(total(terms))


def summed(term: Term, names: Iterable[str], ranges: Mapping[str, Extent]) -> Term:
    """The term summed along indices, each as far inside as it can go: the fewest factors are read again."""
    left = set(names) & term.free
    while left:
        index = min(sorted(left), key=lambda n: (sum(n in free(f) for f in term.factors), n))
        left.remove(index)
        term = _along(term, index, ranges[index])
    return term


def _along(term: Term, index: str, extent: Extent) -> Term:
    inner = [f for f in term.factors if index in free(f)]
    outer = [f for f in term.factors if index not in free(f)]
    where = [c for c in term.where if index in free(c)]
    rest = tuple(c for c in term.where if index not in free(c))
    binders: tuple[Binder, ...] = (Binder(index, extent),)
    body = product(inner)
    if len(inner) == 1 and isinstance(body, Reduce) and body.monoid == "sum":
        binders, where = (*binders, *body.binders), [*where, *conjuncts(body.where)]
        body = body.body[0]
    return Term(rest, (*outer, Reduce("sum", binders, joined(where), (body,), "f")))


def substituted(e: Expr, places: Mapping[str, Expr]) -> Expr:
    """`e` with free indices replaced; affine places are put in order. Inner indices have to be named apart before."""
    if not free(e) & set(places):
        return e
    if isinstance(e, Idx):
        return places[e.name]
    made = rebuilt(e, tuple(substituted(c, places) for c in children(e)))
    form = affine(made) if made.kind == "i" and isinstance(made, Op) else None
    return made if form is None else written(form)


def written(form: Affine) -> Expr:
    """An affine form as an expression."""
    result: Expr | None = None
    for name, factor in sorted(form.terms, key=lambda t: t[1] < 0):
        part: Expr = Ext(name[1:]) if name.startswith("#") else Idx(name)
        if abs(factor) != 1:
            part = op("mul", Num(abs(factor), "i"), part)
        if result is None:
            result = part if factor > 0 else op("neg", part)
        else:
            result = op("add" if factor > 0 else "sub", result, part)
    if result is None:
        return Num(form.constant, "i")
    if form.constant:
        sign = "add" if form.constant > 0 else "sub"
        result = op(sign, result, Num(abs(form.constant), "i"))
    return result
