"""What random arguments have to be like for a kernel to do what it does in use.

On any numbers, a gather reads outside of its array most of the time, which costs nothing, and a shift by a large number
means nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from portolan.kernels.arrays import size_of
from portolan.kernels.tree import Expr, Ext, Load, Op, Program, children, walk

#: Shifts that every integer holds.
MOST_SHIFTED = 5


def shifts(program: Program) -> frozenset[str]:
    """Arguments of integers by which others are shifted."""
    found = (x.args[1] for x in _all(program) if isinstance(x, Op) and x.name in ("shl", "shr"))
    return frozenset(e.tensor for part in found for e in walk(part) if isinstance(e, Load))


def places(program: Program, sizes: Mapping[str, int]) -> dict[str, tuple[float, float]]:
    """Arguments that say where another is read, each with the range of numbers that are inside.

    Floats run to 1 where the kernel multiplies them by a size (`int(place[i] * W)`), else to the size of the axis.
    Integers share the axis: a sum has a part for each term, and the factors of a product are roots of its part.
    """
    found: dict[str, tuple[float, float]] = {}

    def note(name: str, low: float, high: float) -> None:
        before = found.get(name, (low, high))
        found[name] = min(low, before[0]), min(high, before[1])

    for read in {e for e in _all(program) if isinstance(e, Load)}:
        for part, axis in zip(read.index, program.tensor(read.tensor).axes, strict=True):
            extent = float(size_of(axis, sizes))
            for x in walk(part):
                if isinstance(x, Op) and x.name == "int":
                    scaled = any(isinstance(y, Ext) or (isinstance(y, Load) and y.kind == "i") for y in walk(x))
                    for e in walk(x):
                        if isinstance(e, Load) and e.kind == "f":
                            note(e.tensor, 0.0, 1.0 if scaled else extent)
            terms = [(t, d) for t in _terms(part) if (d := _degree(t))]
            for term, degree in terms:
                top = max(1.0, (extent / len(terms)) ** (1 / degree))
                for e in walk(term):
                    if isinstance(e, Load) and e.kind == "i":
                        note(e.tensor, top / 2 if degree > 1 else 0.0, top)
    return found


def _all(program: Program) -> Iterator[Expr]:
    for value in (*program.values, *(s.value for s in program.stages)):
        yield from walk(value)


def _terms(e: Expr) -> Iterator[Expr]:
    if isinstance(e, Op) and e.name in ("add", "sub"):
        for arg in e.args:
            yield from _terms(arg)
    else:
        yield e


def _degree(e: Expr) -> int:
    """How many integers of arguments are multiplied by each other."""
    if isinstance(e, Load):
        return 1 if e.kind == "i" else 0
    below = [_degree(c) for c in children(e)]
    return sum(below) if isinstance(e, Op) and e.name == "mul" else max([0, *below])
