"""The gradient of a kernel as a few kernels: what is kept of the forward computation, then all derivatives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from portolan.kernels.bounds import affine
from portolan.kernels.build_tree import apart, op
from portolan.kernels.check import check
from portolan.kernels.derive.names import distinct
from portolan.kernels.derive.reverse import Reverse, slope
from portolan.kernels.derive.rules import ZERO, opposite
from portolan.kernels.derive.terms import Term, one, substituted, summed, total, written
from portolan.kernels.tree import (
    Carry,
    Expr,
    Ext,
    Extent,
    Idx,
    Load,
    Num,
    Op,
    Program,
    Ranked,
    Reduce,
    Scan,
    Tensor,
    children,
    conjuncts,
    free,
    rebuilt,
    renamed,
    walk,
)
from portolan.kernels.trouble import KernelError, Place

FLOATS = ("f32", "f16", "bf16")
#: Before the name of an argument that is given again for its sizes alone.
LIKE = "like_"
#: Before the name of an argument to whose derivative is added.
SUM = "sum_"


@dataclass(frozen=True)
class Plan:
    """Kernels in order. Each takes arguments of the first one, derivatives of its results, and what was made before.

    Attributes:
        programs: the last gives the derivatives, those before it one array each.
        wanted: the arguments whose derivatives the last gives, in order.
    """

    programs: tuple[Program, ...]
    wanted: tuple[str, ...]


def plan(program: Program, *, added: frozenset[str] = frozenset(), every: frozenset[str] = frozenset()) -> Plan:
    """The kernels that make up the gradient of `program`, which has no stages, in reverse mode.

    Args:
        program: the kernel.
        added: arguments to whose derivatives the last kernel adds what it is given as `sum_NAME`.
        every: arguments that get a derivative although nothing depends on them: zeros. Where either names any, all
            derivatives are f32, to be added up.

    Raises:
        KernelError: it has a part without a derivative here.
    """
    return _Maker(program, added, every).made()


@dataclass
class _Group:
    """Arrays that one kernel makes."""

    name: str
    outputs: list[Tensor]
    values: list[Expr]


@dataclass
class _Maker:
    program: Program
    added: frozenset[str] = frozenset()
    every: frozenset[str] = frozenset()
    groups: list[_Group] = field(default_factory=list)
    tensors: list[Tensor] = field(default_factory=list)
    kept: dict[Expr, Tensor] = field(default_factory=dict)

    def made(self) -> Plan:
        """The plan."""
        p = self.program
        self.values, self.ranges = distinct(p)
        self.axes = frozenset(str(a) for o in p.outputs for a in o.axes)
        self.taken = {t.name for t in p.inputs} | set(self.ranges)
        seeds = [self._seed(o) for o in p.outputs]
        self.tensors = [*p.inputs, *(s for s, _ in seeds)]
        wanted = tuple(t.name for t in p.inputs if t.dtype in FLOATS)
        reverse = Reverse(p.name, self.ranges, frozenset(wanted), self._scan, self._places)
        reverse.run([(v, Term((), (s,))) for v, (_, s) in zip(self.values, seeds, strict=True) if v.kind == "f"])
        reached = {load.tensor for load in reverse.loads}
        used = tuple(w for w in wanted if w in reached | self.every)
        if not used:
            raise KernelError(f"kernel `{p.name}`: no argument changes its results smoothly")
        last = _Group(f"{p.name}_grad", [], [])
        for name in used:
            tensor = p.tensor(name)
            axes = self._own_axes(tensor)
            found = [(load, self._kept_in(terms)) for load, terms in reverse.loads.items() if load.tensor == name]
            value = total([self._placed(load, term, axes, tensor) for load, term in found])
            if name in self.added:
                before = Tensor(f"{SUM}{name}", axes, "f32")
                self.tensors.append(before)
                value = op("add", Load(before.name, tuple(map(Idx, axes)), "f"), value)
            last.outputs.append(Tensor(f"grad_{name}", axes, "f32" if self.added | self.every else tensor.dtype))
            last.values.append(value)
        self.groups.append(last)
        return Plan(tuple(self._built(g) for g in self.groups), used)

    def _seed(self, output: Tensor) -> tuple[Tensor, Expr]:
        """The argument that brings the derivative of a result, and its element."""
        sizes = tuple(self.ranges[str(a)] for a in output.axes)
        tensor = Tensor(seed_name(self.program, output), sizes, "f32")
        self.taken.add(tensor.name)
        return tensor, Load(tensor.name, tuple(Idx(str(a)) for a in output.axes), "f")

    # What is kept -----------------------------------------------------------------------------------------------------

    def _kept_in(self, terms: Sequence[Term]) -> Term:
        """The term, with reductions that belong to an element of the results, and scans, read from kept arrays."""
        term = one(terms)
        alone = len(term.factors) == 1 and isinstance(term.factors[0], Reduce)
        factors = (self._below(f, term.where) if alone else self._reading(f, term.where) for f in term.factors)
        return Term(tuple(self._reading(c) for c in term.where), tuple(factors))

    def _below(self, e: Expr, known: tuple[Expr, ...] = ()) -> Expr:
        if isinstance(e, Op) and e.name == "where":
            condition, yes, no = e.args
            made = (
                self._reading(condition, known),
                self._reading(yes, (*known, *conjuncts(condition))),
                self._reading(no, (*known, opposite(condition))),
            )
            return rebuilt(e, made)
        return rebuilt(e, tuple(self._reading(c, known) for c in children(e)))

    def _reading(self, e: Expr, known: tuple[Expr, ...] = ()) -> Expr:
        """`e`, with what is kept of it read; where it stands, the conditions `known` hold."""
        if isinstance(e, Scan) or (isinstance(e, Reduce) and free(e) <= self.axes):
            # The kept array is whole: what makes its reads safe has to go with it.
            guard = tuple(c for c in known if free(c) <= free(e)) if isinstance(e, Reduce) and e.kind == "f" else ()
            return self._load(Term(guard, (e,)).expr() if guard else e)
        return self._below(e, known) if children(e) else e

    def _load(self, e: Expr) -> Expr:
        """The kept array that holds `e`, made by a kernel of its own."""
        axes = self._ordered(e)
        if e not in self.kept:
            inner = e.args[1] if isinstance(e, Op) else e
            value = inner if isinstance(e, Ranked) else self._below(inner)
            value = rebuilt(e, (e.args[0], value, e.args[2])) if isinstance(e, Op) else value
            self.kept[e] = self._stored("state" if isinstance(e, Scan) else "kept", axes, value)
        return Load(self.kept[e].name, tuple(Idx(a) for a in axes), e.kind)

    def _ordered(self, e: Expr) -> tuple[str, ...]:
        return tuple(sorted(free(e), key=lambda n: (n not in self.axes, n)))

    def _places(self, e: Ranked) -> Expr:
        """Where the elements of a ranking were."""
        return self._load(replace(e, part="index", kind="i"))

    def _stored(self, stem: str, axes: Sequence[str], value: Expr) -> Tensor:
        """An array that holds `value`; its axes are called by their extents, ranks by their own names."""
        named = {a: str(self.ranges[a]) if isinstance(self.ranges[a], str) else a for a in axes}
        ranks = {e.rank for e in walk(value) if isinstance(e, Ranked)}
        if len(set(named.values())) < len(axes) or any(
            isinstance(self.ranges[a], int) and a not in ranks for a in axes
        ):
            raise KernelError(
                f"kernel `{self.program.name}`: there is no gradient where what is kept has no axes of its own",
                hint="give every index that a scan or an inner reduction mentions an axis of its own name",
            )
        name = fresh(f"{stem}{len(self.kept)}", self.taken)
        self.taken.add(name)
        value = _moved(apart(value, frozenset(named.values())), named)
        dtype = "i32" if value.kind == "i" else "f32"
        if isinstance(value, Ranked):  # places come with their values
            self._group(Tensor(f"{name}_value", tuple(named.values()), "f32"), replace(value, part="value", kind="f"))
            self.groups[-1].outputs.append(Tensor(name, tuple(named.values()), dtype))
            self.groups[-1].values.append(value)
        else:
            self._group(Tensor(name, tuple(named.values()), dtype), value)
        tensor = Tensor(name, tuple(self.ranges[a] for a in axes), dtype)
        self.tensors.append(tensor)
        return tensor

    def _group(self, output: Tensor, value: Expr) -> None:
        """Puts an array beside those of the last kernel where it needs none of them."""
        last = self.groups[-1] if self.groups else None
        reads = {x.tensor for x in walk(value) if isinstance(x, Load)}
        alone = any(isinstance(x, (Scan, Ranked)) for v in (value, *(last.values if last else ())) for x in walk(v))
        if last is not None and not alone and not reads & {o.name for o in last.outputs}:
            last.outputs.append(output)
            last.values.append(value)
        else:
            self.groups.append(_Group(f"{self.program.name}_{output.name}", [output], [value]))

    def _built(self, group: _Group) -> Program:
        pairs = zip(group.values, group.outputs, strict=True)
        values = [apart(v, frozenset(str(a) for a in o.axes)) for v, o in pairs]
        own = self.program
        inputs = read(self.tensors, values, group.outputs)
        made = Program(group.name, inputs, tuple(group.outputs), (), tuple(values), "", own.path, own.line)
        try:
            check(made, Place(own.path, group.name), own.line)
        except KernelError as error:
            raise KernelError(
                f"kernel `{own.name}`: there is no gradient: {error.message}", where=error.where
            ) from error
        return made

    # Scans ------------------------------------------------------------------------------------------------------------

    def _scan(self, e: Scan, given: Expr) -> tuple[Expr, Term]:
        """Keeps the states and, backward in time, what each step gets; the step, as an expression of kept states."""
        state = self._load(e)
        before = op("sub", Idx(e.axis), Num(1, "i"))
        earlier = substituted(apart(state, frozenset()), {e.axis: before})
        carried = op("where", op("ge", before, Num(0, "i")), earlier, ZERO)
        step = _replaced(e.step, e.carry, carried)
        factor = self._reading(_replaced(slope(e.step, e.carry, self.program.name), e.carry, carried))
        axes = self._ordered(e)
        length = Ext(str(self.ranges[e.axis]))
        now = op("sub", op("sub", length, Num(1, "i")), Idx(e.axis))
        given = apart(self._reading(given), frozenset(axes))
        later = substituted(apart(factor, frozenset(axes)), {e.axis: op("sub", length, Idx(e.axis))})
        name = f"{e.carry}'"
        carry = Carry(name, "f")
        flow = op("where", op("ge", Idx(e.axis), Num(1, "i")), op("mul", carry, later), ZERO)
        backward = Scan(name, e.axis, op("add", substituted(given, {e.axis: now}), flow), "f")
        stored = self._stored("flow", axes, backward)
        self.kept[backward] = stored
        place = {a: Idx(a) for a in axes} | {e.axis: substituted(now, {e.axis: Idx(e.axis)})}
        return step, Term((), (Load(stored.name, tuple(place[a] for a in axes), "f"),))

    # Where it belongs -------------------------------------------------------------------------------------------------

    def _own_axes(self, tensor: Tensor) -> tuple[str, ...]:
        """The names of the derivative's axes; where the argument's own do not serve, the argument is given twice."""
        if all(isinstance(a, str) for a in tensor.axes) and len(set(tensor.axes)) == len(tensor.axes):
            return tuple(str(a) for a in tensor.axes)
        axes = tuple(f"{tensor.name.lower()}_{n}" for n in range(len(tensor.axes)))
        self.tensors.append(Tensor(f"{LIKE}{tensor.name}", axes, tensor.dtype))
        return axes

    def _placed(self, load: Load, term: Term, axes: tuple[str, ...], tensor: Tensor) -> Term:
        """What one load adds to each element: its indices solved for the element's place, the others summed."""
        names = {n: fresh(f"{n}_at", self.taken | set(axes)) for n in sorted(free(load))}
        ranges = {new: self.ranges[old] for old, new in names.items()}
        keep = frozenset((*axes, *names.values()))
        parts = [apart(e, keep) for e in (*term.where, *term.factors, *load.index)]
        for old, new in names.items():
            parts = [renamed(p, old, new) for p in parts]
        split = len(term.where), len(term.where) + len(term.factors)
        where, factors, index = parts[: split[0]], parts[split[0] : split[1]], parts[split[1] :]
        solver = _Solver(ranges, where, factors, index)
        for number in _plain_first(index):
            solver.solve(number, axes[number], tensor.axes[number])
        made = Term(tuple(dict.fromkeys(solver.where)), tuple(solver.factors))
        return summed(made, solver.left, ranges)


@dataclass
class _Solver:
    ranges: dict[str, Extent]
    where: list[Expr]
    factors: list[Expr]
    index: list[Expr]

    def __post_init__(self) -> None:
        self.left = set(self.ranges)

    def solve(self, number: int, axis: str, size: Extent) -> None:
        """Makes the index at `number` equal to the place `axis`: by replacing one of its names, or as a condition."""
        e = self.index[number]
        form = affine(e)
        units = [n for n, f in (form.indices if form else {}).items() if abs(f) == 1 and n in self.left]
        if form is None or not units:
            self.where.append(op("eq", e if form else _clipped(e, size), Idx(axis)))
            return
        name = min(units)
        factor = form.indices[name]
        here = affine(Idx(axis))
        rest = affine(Idx(name))
        if here is None or rest is None:
            return
        place = written((here - form + rest.times(factor)).times(factor))
        self.left.remove(name)
        if place != Idx(axis) or self.ranges[name] != axis:
            extent = self.ranges[name]
            limit = Num(extent, "i") if isinstance(extent, int) else Ext(extent)
            self.where += [op("ge", place, Num(0, "i")), op("lt", place, limit)]
        self.where = [substituted(x, {name: place}) for x in self.where]
        self.factors = [substituted(x, {name: place}) for x in self.factors]
        self.index = [substituted(x, {name: place}) for x in self.index]


def _plain_first(index: Sequence[Expr]) -> list[int]:
    return sorted(range(len(index)), key=lambda n: (not isinstance(index[n], Idx), affine(index[n]) is None))


def _clipped(e: Expr, size: Extent) -> Expr:
    """A gathered place, moved to the nearest end as it is when it is read."""
    limit = Num(size, "i") if isinstance(size, int) else Ext(size)
    return op("maximum", op("minimum", e, op("sub", limit, Num(1, "i"))), Num(0, "i"))


def _replaced(e: Expr, carry: str, value: Expr) -> Expr:
    if isinstance(e, Carry) and e.name == carry:
        return value
    return rebuilt(e, tuple(_replaced(c, carry, value) for c in children(e))) if children(e) else e


def _moved(e: Expr, names: Mapping[str, str]) -> Expr:
    for old, new in names.items():
        if old != new:
            e = replace(e, axis=new) if isinstance(e, Scan) and e.axis == old else renamed(e, old, new)
    return e


def read(tensors: Sequence[Tensor], values: Sequence[Expr], outputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Those of the arrays that values read, and those that give the sizes of what they mention."""
    used = {x.tensor for v in values for x in walk(v) if isinstance(x, Load)}
    inputs = [t for t in tensors if t.name in used]
    needed = {a for o in outputs for a in o.axes if isinstance(a, str)} | {s for v in values for s in _symbols(v)}
    for tensor in tensors:
        lacking = needed - {str(a) for t in inputs for a in t.axes}
        if tensor not in inputs and lacking & {str(a) for a in tensor.axes}:
            inputs.append(tensor)
    return tuple(inputs)


def _symbols(e: Expr) -> set[str]:
    found: set[str] = set()
    for x in walk(e):
        match x:
            case Ext(symbol=symbol):
                found.add(symbol)
            case Reduce(binders=binders):
                found |= {str(b.extent) for b in binders if isinstance(b.extent, str)}
            case Ranked(binder=binder) if isinstance(binder.extent, str):
                found.add(binder.extent)
            case _:
                pass
    return found


def seed_name(program: Program, output: Tensor) -> str:
    """The argument that brings the derivative of a result."""
    return fresh(f"d_{output.name}", {t.name for t in program.inputs})


def fresh(stem: str, taken: set[str]) -> str:
    """A name like `stem` that is not taken."""
    name = stem
    while name in taken:
        name += "_"
    return name
