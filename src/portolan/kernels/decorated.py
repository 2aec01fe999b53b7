"""A kernel as its user holds it: called on arrays, printed as loops, tuned for sizes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from portolan.core.native import Bound, Sharing
from portolan.core.target import Target
from portolan.errors import UsageError
from portolan.kernels import place
from portolan.kernels.arrays import Results, arguments, contiguous, narrowed, taken, widened
from portolan.kernels.arrays import sizes as sizes_of
from portolan.kernels.candidates import default
from portolan.kernels.compiler import Compiler, find
from portolan.kernels.language import language as named
from portolan.kernels.library import Library
from portolan.kernels.lower.nest import groups, lower
from portolan.kernels.lower.schedule import Schedule
from portolan.kernels.oracle import evaluate
from portolan.kernels.printers.text import text
from portolan.kernels.sharing import sharing
from portolan.kernels.source import complete, from_function
from portolan.kernels.tree import Program
from portolan.kernels.tune import recalled, shape_class, source
from portolan.kernels.turned import Order, laid, orders, turned
from portolan.kernels.verify import AGENT, Judge, odd_cases
from portolan.kernels.work import flops
from portolan.worker.session import Worker

if TYPE_CHECKING:
    from portolan.kernels.derive.gradient import Gradient

Array = np.ndarray[Any, Any]
Look = tuple[object, ...]
"""What decides how arrays are read: the shape, strides and type of each."""
_MOST_THREADS = 1024
#: Looks of arguments that a kernel remembers.
_MOST_CALLS = 256
#: Ways of lying in memory that a kernel is compiled for; further ones are copied.
_MOST_TURNED = 16


@dataclass(frozen=True)
class _Call:
    """What arguments of one look lead to: results, and the compiled kernel; None where there is nothing to read."""

    results: Results
    bound: Bound | None


class Kernel:
    """A tensor computation in index notation.

    Call it with one NumPy array for each argument; it gives the result, or a tuple of them. The first call for sizes of
    a new class compiles the kernel (the best layout that tuning found, else the likeliest), and checks it against the
    oracle in a process of its own.
    """

    def __init__(self, program: Program) -> None:
        self.program = program
        self.sizes: list[Mapping[str, int]] = []
        self._ready: dict[str, Library] = {}
        self._calls: dict[Look, _Call] = {}
        self._turned: dict[tuple[tuple[str, Order], ...], Kernel] = {}
        self._pools: dict[int, Sharing] = {}
        self._lock = threading.Lock()

    @property
    def name(self) -> str:
        """The function's name."""
        return self.program.name

    def __call__(self, *arrays: Any, out: Any = None, threads: int = 1) -> Any:
        """The results.

        Args:
            arrays: one for each argument, of the annotated type. Large ones that are transposed, or columns of a larger
                array, are read where they are, by a kernel compiled for that; others that are not contiguous are
                copied once. Arguments may overlap each other and themselves.
            out: arrays for the results, contiguous and apart from all others.
            threads: to share the work among.

        Raises:
            UsageError: arrays that do not fit.
            NoBackend: there is no C compiler.
            VerificationFailed: the compiled kernel differs from the oracle.
        """
        if not 1 <= threads <= _MOST_THREADS:
            raise UsageError(f"`threads` is {threads}, and has to be from 1 to {_MOST_THREADS}")
        given: Sequence[Any] = arrays
        call = self._calls.get(_look(arrays))
        if call is None:
            given = arguments(self.program, arrays)
            kernel, arrays = self._laid(given)
            call = kernel._call(arrays)
        made = call.results.made() if out is None else call.results.checked(out, given)
        if call.bound is not None:
            call.bound([*arrays, *made], self._pool(threads))
        elif not call.results.empty:  # there is nothing to read, and the result is what a reduction over nothing gives
            for array, value, tensor in zip(made, self.oracle(*given), self.program.outputs, strict=True):
                array[...] = narrowed(tensor, value)
        return made[0] if len(made) == 1 else tuple(made)

    def oracle(self, *arrays: Any) -> list[Array]:
        """The results in float64 and int64, by NumPy, from the same text. For small arrays."""
        given, _ = taken(self.program, arrays)
        return evaluate(self.program, [widened(t, a) for t, a in zip(self.program.inputs, given, strict=True)])

    def schedules(self, sizes: Mapping[str, int], target: Target | None = None) -> list[Schedule]:
        """The layout for sizes: what tuning found, else the likeliest."""
        place_, compiler = target or _local(), _compiler()
        if compiler is not None and (tuned := recalled(self.program, sizes, place_, compiler)) is not None:
            return list(tuned.schedules)
        return [default(self.program, g, place_, sizes) for g in groups(self.program)]

    def loops(self, sizes: Mapping[str, int] | None = None) -> str:
        """The loop program for sizes."""
        return text(lower(self.program, self.schedules(sizes or self.usual())))

    def code(self, sizes: Mapping[str, int] | None = None, language: str = "c") -> str:
        """The code for sizes, in C or another language.

        Raises:
            UnknownName: no such language.
            UnsupportedOperator: it has no words for this kernel.
        """
        wanted = sizes or self.usual()
        if language == "c":
            return source(self.program, self.schedules(wanted))
        known = named(language)
        return known.source(self.program, [known.schedules(self.program, g, wanted)[0] for g in groups(self.program)])

    def grad(self) -> Gradient:
        """The derivatives of the results by the arguments, in reverse mode.

        Raises:
            KernelError: it has a part without a derivative.
        """
        from portolan.kernels.derive.gradient import Gradient

        return Gradient(self.program)

    def usual(self) -> Mapping[str, int]:
        """Sizes to work for: those that a `shapes` line names, else likely ones."""
        return self.sizes[0] if self.sizes else likely_sizes(self.program)

    def __str__(self) -> str:
        return self.loops()

    def __repr__(self) -> str:
        inputs = ", ".join(f"{t.name}: {' '.join(map(str, t.axes))}" for t in self.program.inputs)
        return f"kernel {self.name}({inputs})"

    def _laid(self, given: Sequence[Array]) -> tuple[Kernel, tuple[Array, ...]]:
        """The kernel that reads arguments as they lie, and what it is given; those that none reads so are copied."""
        by = {} if all(a.flags.c_contiguous for a in given) else orders(self.program, given)
        kernel = self._other(by) if by else self
        places = [None if kernel is self else by.get(t.name) for t in self.program.inputs]
        pairs = zip(given, places, strict=True)
        return kernel, tuple(contiguous(a) if order is None else laid(a, order) for a, order in pairs)

    def _other(self, by: Mapping[str, Order]) -> Kernel:
        """The same kernel for arguments that lie otherwise; this one, where there are many such already."""
        key = tuple(sorted(by.items()))
        with self._lock:
            if key not in self._turned:
                if len(self._turned) >= _MOST_TURNED:
                    return self
                self._turned[key] = Kernel(turned(self.program, by))
            return self._turned[key]

    def _call(self, arrays: Sequence[Array]) -> _Call:
        """What contiguous arrays that look so lead to, worked out once: it takes as long as a small kernel."""
        look = _look(arrays)
        found = self._calls.get(look)
        if found is None:
            sizes = sizes_of(self.program, [a.shape for a in arrays])
            results = Results.of(self.program, sizes)
            nothing = results.empty or any(a.size == 0 for a in arrays)
            found = _Call(results, None if nothing else self._library(sizes).bound(sizes))
            if len(self._calls) >= _MOST_CALLS:
                self._calls.clear()
            self._calls[look] = found
        return found

    def _library(self, sizes: Mapping[str, int]) -> Library:
        known = shape_class(sizes)
        with self._lock:
            if known not in self._ready:
                self._ready[known] = prepared(self.program, self.schedules(sizes))
            return self._ready[known]

    def _pool(self, count: int) -> Sharing:
        with self._lock:
            if count not in self._pools:
                self._pools[count] = sharing(count)
            return self._pools[count]


def _look(arrays: Sequence[Any]) -> Look:
    """Of NumPy's own arrays; that of anything else is none that is remembered."""
    return tuple([(a.shape, a.strides, a.dtype) if type(a) is np.ndarray else None for a in arrays])


def _local() -> Target:
    from portolan.targets.local import local

    return local.detect()


def _compiler() -> Compiler | None:
    from portolan.errors import NoBackend

    try:
        return find()
    except NoBackend:
        return None


def prepared(program: Program, schedules: Sequence[Schedule]) -> Library:
    """The compiled kernel in this process, once it has agreed with the oracle in another.

    Raises:
        NoBackend: there is no C compiler.
        VerificationFailed: it differs from the oracle.
        WorkerError: it crashed.
    """
    path = find().build(source(program, schedules))
    key = path.stem
    if place.recall(place.CHECKED, key) is None:
        with Worker(module=AGENT) as worker:
            cases = odd_cases(program, schedules[0], np.random.default_rng(0))
            error = Judge(program, cases, worker).error("checked", path)
        place.remember(place.CHECKED, key, {"error": error})
    return Library(path, program.name, program.symbols)


def likely_sizes(program: Program) -> dict[str, int]:
    """Sizes to tune for where none are named: as large as a fraction of a second of work allows."""
    sizes = dict.fromkeys(program.symbols, 512)
    for stage in program.stages:
        if isinstance(stage.extent, str):
            sizes[stage.extent] = 8
    while flops(program, sizes) > 5e8 and max(sizes.values()) > 16:
        name = max(sizes, key=lambda s: (sizes[s], s))
        sizes[name] //= 2
    return sizes


def kernel(function: Callable[..., Any]) -> Kernel:
    """Makes a function in index notation a kernel. Its body is read, never executed.

    Raises:
        KernelError: it cannot be read as a kernel; the error names the line and what to write.
    """
    return Kernel(from_function(function))


def shapes(kernel: Kernel, **sizes: int) -> None:
    """Names sizes to tune a kernel for.

    Raises:
        UsageError: a size for every axis of the arguments and for nothing else.
    """
    if not isinstance(kernel, Kernel):
        raise UsageError(
            "`shapes` takes a kernel and sizes by axis", hint="write `shapes(tropical, i=512, k=512, j=512)`"
        )
    kernel.sizes.append(complete(kernel.program, sizes))
