"""How a printed kernel is started: its functions in order, and how many tasks and how much scratch each needs.

Programs for devices are built once for all sizes; what depends on sizes travels beside them as plain data.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from portolan.errors import UsageError
from portolan.kernels.functions import OPS
from portolan.kernels.ir import Alloc, Do, Lit, Loops, Ref, Variant, X, add, statements
from portolan.kernels.lower.emitter import size_name

#: Sizes and places on devices are 32 bits wide.
_MOST = 2**31 - 1


@dataclass(frozen=True)
class Step:
    """A function to start.

    Attributes:
        entry: its name.
        when: what has to hold of the sizes, as `written`; None for always.
        tasks: how many tasks there are, each the work of one thread.
        words: 32-bit words of scratch that each task needs.
    """

    entry: str
    when: Any
    tasks: Any
    words: Any


@dataclass(frozen=True)
class Plan:
    """A kernel's functions.

    Attributes:
        kernel: its name.
        symbols: whose sizes the functions take, in order.
        inputs: of arguments, the dtypes.
        outputs: of results.
        nests: one after another; of each the first step that is allowed.
    """

    kernel: str
    symbols: tuple[str, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    nests: tuple[tuple[Step, ...], ...]

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        nests = [[[s.entry, s.when, s.tasks, s.words] for s in nest] for nest in self.nests]
        names = {"kernel": self.kernel, "symbols": list(self.symbols)}
        return {**names, "inputs": list(self.inputs), "outputs": list(self.outputs), "nests": nests}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Plan:
        """Reads what `to_json` wrote."""
        nests = tuple(tuple(Step(*step) for step in nest) for nest in data["nests"])
        return cls(data["kernel"], tuple(data["symbols"]), tuple(data["inputs"]), tuple(data["outputs"]), nests)

    def numbers(self, sizes: Mapping[str, int]) -> list[int]:
        """The sizes, in the order in which functions take them."""
        return [sizes[s] for s in self.symbols]

    def starts(self, sizes: Mapping[str, int]) -> list[tuple[str, int, int]]:
        """Of each function to start: its name, its tasks, and the words of scratch for all of them.

        Raises:
            UsageError: more than 32 bits can count.
        """
        known = {size_name(s): sizes[s] for s in self.symbols}
        found = []
        for nest in self.nests:
            step = next(s for s in nest if s.when is None or number(s.when, known))
            tasks, words = number(step.tasks, known), number(step.words, known)
            if tasks > _MOST or tasks * words > _MOST:
                raise UsageError(
                    f"kernel `{self.kernel}`: {tasks} tasks with {words} words each are more than 32 bits can count",
                    hint="call it on parts of the arrays, or on the CPU",
                )
            found.append((step.entry, tasks, tasks * words))
        return found


def plan(loops: Loops, entries: Mapping[tuple[int, int], str], *, stack: bool = False) -> Plan:
    """The plan of printed loops.

    Args:
        loops: the loops.
        entries: the name of the function of each variant of each nest.
        stack: whether buffers of a constant size lie in scratch too.
    """
    nests = tuple(
        tuple(_step(entries[n, v], variant, stack) for v, variant in enumerate(nest.variants))
        for n, nest in enumerate(loops.nests)
    )
    symbols = tuple(s.removeprefix("n_") for s in loops.sizes)
    return Plan(loops.name, symbols, tuple(a.dtype for a in loops.inputs), tuple(a.dtype for a in loops.outputs), nests)


def _step(entry: str, variant: Variant, stack: bool) -> Step:
    when = None if variant.when is None else written(variant.when)
    return Step(entry, when, written(variant.tasks), written(scratch(variant, stack)))


def scratch(variant: Variant, stack: bool) -> X:
    """Words of scratch that a task needs."""
    total: X = Lit(0)
    for s in statements(variant.body):
        if isinstance(s, Alloc) and (stack or s.space == "workspace"):
            total = add(total, s.size)
    return total


def written(x: X) -> Any:
    """An expression over sizes as plain data: a number, a name, or an operation and its operands."""
    match x:
        case Lit(value=value):
            return value
        case Ref(name=name):
            return name
        case Do(op=op, args=args):
            return [op, *map(written, args)]
        case _:
            raise LookupError(f"{x} is no expression over sizes")


def number(x: Any, sizes: Mapping[str, int]) -> int:
    """The value of what `written` wrote."""
    if isinstance(x, str):
        return sizes[x]
    if not isinstance(x, list):
        return int(x)
    name, *args = x
    return int(OPS[name].numpy(*(number(a, sizes) for a in args)))
