"""Reverse mode on a tree: what each element of each argument adds to the derivative of the results."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from portolan.kernels.build_tree import op
from portolan.kernels.derive.rules import CHOICES, ONE, RULES, choices
from portolan.kernels.derive.terms import Term, joined, one, summed, total
from portolan.kernels.tree import (
    Binder,
    Carry,
    Expr,
    Ext,
    Extent,
    Idx,
    Load,
    Num,
    Op,
    Ranked,
    Reduce,
    Scan,
    children,
    free,
    renamed,
    walk,
)
from portolan.kernels.trouble import KernelError


class Reverse:
    """Carries derivatives from the results down to the loads.

    Args:
        name: the kernel's, for errors.
        ranges: what each index runs over; an index has one range in the whole kernel.
        wanted: the arguments whose derivatives are wanted.
        scans: told of a scan and its derivative, it says what the scan's step gets, and as which expression.
        places: where the elements of a ranking were, as an expression that may stand anywhere.
    """

    def __init__(
        self,
        name: str,
        ranges: Mapping[str, Extent],
        wanted: frozenset[str],
        scans: Callable[[Scan, Expr], tuple[Expr, Term]],
        places: Callable[[Ranked], Expr],
    ) -> None:
        self.name, self.ranges, self.wanted, self.scans, self.places = name, ranges, wanted, scans, places
        self.loads: dict[Load, list[Term]] = {}

    def run(self, roots: Sequence[tuple[Expr, Term]]) -> None:
        """Adds what the roots' derivatives bring."""
        pending: dict[Expr, list[Term]] = {}
        for root, term in roots:
            pending.setdefault(root, []).append(term)
        for e in self._order([root for root, _ in roots]):
            if e in pending:
                self._down(e, one(pending.pop(e)), pending)

    def _order(self, roots: Sequence[Expr]) -> list[Expr]:
        """Every expression that a wanted argument reaches, each before all below it."""
        seen: set[Expr] = set()
        after: list[Expr] = []

        def visit(e: Expr) -> None:
            if e in seen or not self._reached(e):
                return
            seen.add(e)
            for child in () if isinstance(e, Scan) else children(e):
                visit(child)
            after.append(e)

        for root in roots:
            visit(root)
        return after[::-1]

    def _reached(self, e: Expr) -> bool:
        return e.kind == "f" and any(isinstance(x, Load) and x.tensor in self.wanted for x in walk(e))

    def _down(self, e: Expr, term: Term, pending: dict[Expr, list[Term]]) -> None:
        def give(child: Expr, found: Term) -> None:
            if self._reached(child):
                apart = found.free - free(child)
                pending.setdefault(child, []).append(summed(found, apart & set(self.ranges), self.ranges))

        match e:
            case Load(tensor=name):
                if name in self.wanted:
                    self.loads.setdefault(e, []).append(term)
            case Op(name=name) if name in CHOICES:
                for child, condition in choices(e):
                    give(child, term.under(condition))
            case Op(name=name, args=args):
                if name not in RULES:
                    raise self._none(f"`{name}`")
                for child, factor in zip(args, RULES[name](args, e), strict=True):
                    if factor is not None:
                        give(child, term.times(factor))
            case Reduce():
                self._reduce(e, term, give)
            case Scan():
                step, found = self.scans(e, term.expr())
                self.run([(step, found)])
            case Ranked(binder=binder):
                give(e.body, term.under(op("eq", Idx(binder.index), self.places(e))))
            case _:
                raise self._none("this expression")

    def _reduce(self, e: Reduce, term: Term, give: Callable[[Expr, Term], None]) -> None:
        inside = term if e.where is None else term.under(e.where)
        body = e.body[0]
        match e.monoid:
            case "sum":
                give(body, inside)
            case "max" | "min":
                best = Reduce(f"arg{e.monoid}", e.binders, e.where, e.body, "i")
                give(body, inside.under(op("eq", counted(e.binders), best)))
            case "logsumexp":
                give(body, inside.times(op("exp", op("sub", body, e))))
            case "prod":
                give(body, inside.times(self._others(e)))
            case "softmean":
                self._softmean(e, inside, give)
            case _:
                raise self._none(f"`{e.monoid}`")

    def _others(self, e: Reduce) -> Expr:
        """The product of all elements but this: a quotient would fail where an element is 0."""
        names = {b.index: f"{b.index}_other" for b in e.binders}
        binders = tuple(Binder(names[b.index], b.extent) for b in e.binders)
        parts = [e.body[0]] if e.where is None else [e.body[0], e.where]
        for old, new in names.items():
            parts = [renamed(p, old, new) for p in parts]
        differ = op("ne", counted(binders), counted(e.binders))
        where = joined([*parts[1:], differ])
        return Reduce("prod", binders, where, (parts[0],), "f")

    def _softmean(self, e: Reduce, term: Term, give: Callable[[Expr, Term], None]) -> None:
        """With weights p of sum 1: `p` for the values, and `p (c - mean of c)` for the scores, c what the values get.

        c is summed along all that scores do not mention before its mean is taken, so the mean is as small as they are.
        """
        score, value = e.body
        whole = Reduce("logsumexp", e.binders, e.where, (score,), "f")
        weight = op("exp", op("sub", score, whole))
        give(value, term.times(weight))
        if not self._reached(score):
            return
        # The mask is the weights' own: what is summed here is summed for all elements that they leave.
        masks = set(() if e.where is None else Term().under(e.where).where)
        plain = Term(tuple(c for c in term.where if c not in masks), term.factors).times(value)
        bound = {b.index for b in e.binders}
        apart = plain.free - free(score) - bound
        each = summed(plain, apart & set(self.ranges), self.ranges)
        mean = Reduce("softmean", e.binders, e.where, (score, each.expr()), "f")
        there = Term().times(weight, op("sub", each.expr(), mean))
        give(score, there if e.where is None else there.under(e.where))

    def _none(self, what: str) -> KernelError:
        return KernelError(
            f"kernel `{self.name}`: there is no gradient through {what}",
            hint="reductions of floats, rankings, scans and element functions have one",
        )


def counted(binders: Sequence[Binder]) -> Expr:
    """Several indices as one number, the last the fastest."""
    place: Expr = Idx(binders[0].index)
    for binder in binders[1:]:
        extent = Num(binder.extent, "i") if isinstance(binder.extent, int) else Ext(binder.extent)
        place = op("add", op("mul", place, extent), Idx(binder.index))
    return place


def slope(e: Expr, carry: str, name: str) -> Expr:
    """The derivative of a scan's step by the carried value: forward, since only one number is carried.

    Raises:
        KernelError: the step reduces the carried value, or has a function without a derivative.
    """
    if not any(isinstance(x, Carry) and x.name == carry for x in walk(e)):
        return Num(0.0, "f")
    match e:
        case Carry():
            return ONE
        case Op(name=function) if function in CHOICES:
            found = [Term((condition,), (slope(child, carry, name),)) for child, condition in choices(e)]
            return total([t for t in found if t.factors != (Num(0.0, "f"),)])
        case Op(name=function, args=args) if function in RULES:
            terms = []
            for child, factor in zip(args, RULES[function](args, e), strict=True):
                inner = slope(child, carry, name)
                if factor is not None and inner != Num(0.0, "f"):
                    terms.append(Term().times(factor, inner))
            return total(terms)
        case _:
            raise KernelError(
                f"kernel `{name}`: there is no gradient of a scan whose step is not element-wise in the carried value"
            )
