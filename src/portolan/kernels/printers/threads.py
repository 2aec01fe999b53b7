"""What printers for GPUs have in common: a function for each nest, a thread for each task of it.

A task is an element of the result, or a tile of them, as the schedule says. Memory of a thread's own that has no
constant size lies in one buffer of scratch, neighbouring threads' words side by side.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from portolan.kernels.ir import Alloc, Array, Lit, Loops, Variant, X, add, statements
from portolan.kernels.lower.plain import plain
from portolan.kernels.plan import Plan, plan
from portolan.kernels.printers.clike import CLikePrinter, Words
from portolan.kernels.trouble import unprinted


def ascii_name(name: str) -> str:
    """A name of Python's as one that every language takes."""
    return name if name.isascii() else "u" + name.encode().hex()


class Printer(ABC):
    """Prints loops as functions that are started for a number of tasks."""

    loops: Loops

    @abstractmethod
    def source(self, loops: Loops) -> str:
        """The whole program."""

    @abstractmethod
    def plan(self, loops: Loops) -> Plan:
        """How the program is started."""

    def entry(self, nest: int, variant: int) -> str:
        """The name of a function."""
        return f"portolan_{ascii_name(self.loops.name)}_{nest}_{variant}"


class ThreadPrinter(CLikePrinter, Printer):
    """Prints loops in a language like C, as functions that run in one thread for each task."""

    def __init__(self) -> None:
        self.scratch: dict[str, X] = {}

    @abstractmethod
    def head(self, loops: Loops) -> str:
        """What stands before the functions."""

    @abstractmethod
    def function(self, name: str, body: str) -> str:
        """A function: `body` uses `task`, the thread's number, and `tasks`, how many there are."""

    def source(self, loops: Loops) -> str:
        """The whole program."""
        self.loops = loops = plain(loops)
        parts = [
            self._variant(self.entry(n, v), variant)
            for n, nest in enumerate(loops.nests)
            for v, variant in enumerate(nest.variants)
        ]
        return "\n".join((self.head(loops), *parts))

    def plan(self, loops: Loops) -> Plan:
        """How the program is started."""
        self.loops = loops
        names = {(n, v): self.entry(n, v) for n, nest in enumerate(loops.nests) for v in range(len(nest.variants))}
        return plan(loops, names)

    def array(self, name: str) -> str:
        """The variable that holds an array or a buffer."""
        return ascii_name(super().array(name))

    def _variant(self, name: str, variant: Variant) -> str:
        self.scratch, place = {}, Lit(0)
        total: X = place
        for s in statements(variant.body):
            if isinstance(s, Alloc) and s.space == "workspace":
                if s.base != "f":
                    raise unprinted("integers in scratch memory", self.name)
                self.scratch[s.name] = total
                total = add(total, s.size)
        # Threads of a group wait for each other, so none may end before; their number is a whole number of groups.
        begun = "" if variant.together else "  if (task >= tasks) { return; }\n"
        return self.function(name, begun + self.block(variant.body, 1))

    def element(self, array: str, offset: X) -> str:
        """An element; those of scratch are as many words apart as there are tasks."""
        if array not in self.scratch:
            return super().element(array, offset)
        return f"scratch[({self.x(add(self.scratch[array], offset))}) * tasks + task]"

    @property
    def arrays(self) -> tuple[Array, ...]:
        """Arguments, then results."""
        return (*self.loops.inputs, *self.loops.outputs)


class PointerPrinter(ThreadPrinter):
    """Languages in which arrays are pointers that a function takes, then the sizes: OpenCL, CUDA, and their kin.

    Attributes:
        entry_word: what begins a function.
        space: what stands before the type of a pointer to memory that all threads see.
        restrict: what says that no two pointers overlap.
        task: the number of the thread.
    """

    entry_word: str
    space: str
    restrict: str
    task: str

    def function(self, name: str, body: str) -> str:
        """A function that takes arrays, scratch, sizes and the number of tasks."""
        given = len(self.loops.inputs)
        params = [self._param(a, n < given) for n, a in enumerate(self.arrays)]
        params += [f"{self.space}float *{self.restrict} scratch", *(f"place_t {s}" for s in self.loops.sizes)]
        begun = f"  const place_t task = {self.task};\n"
        return f"{self.entry_word} {name}({', '.join(params)}, place_t tasks) {{\n{begun}{body}}}\n"

    def _param(self, array: Array, const: bool) -> str:
        kind = f"{'const ' if const else ''}{self.words.holds[array.dtype]}"
        return f"{self.space}{kind} *{self.restrict} {self.array(array.name)}"


__all__ = ["PointerPrinter", "ThreadPrinter", "Words"]
