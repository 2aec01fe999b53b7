"""WGSL, the language of WebGPU.

    binding 0       the sizes, the number of tasks, and the bits of infinity and NaN, four to a vector
    binding 1 ...   arguments, results, scratch

Narrow types lie in words of 32 bits. A result of one is zero at first, and each thread sets the bits of its elements.
"""

from __future__ import annotations

from portolan.kernels.ir import Alloc, Array, Do, Loops, Read, Statement, Variant, Write
from portolan.kernels.lower.shared import THREADS
from portolan.kernels.printers.clike import Words
from portolan.kernels.printers.files import shared
from portolan.kernels.printers.signs import INFIX
from portolan.kernels.printers.threads import ThreadPrinter

#: Threads of a group; more groups than this side by side are a second row of them.
GROUP, MOST_GROUPS = THREADS, 65535
_NARROW = {"f16": 1, "bf16": 1, "i8": 2}
_OWN = ("exp", "log", "tanh", "erf", "sin", "cos", "pow", "sigmoid", "larger", "smaller")
WORDS = Words(
    types={"f": "f32", "i": "i32", "m": "bool"},
    holds={"f32": "f32", "i32": "i32", "f16": "u32", "bf16": "u32", "i8": "u32"},
    calls={
        **{("f", name): f"f_{name}" for name in _OWN},
        **{("f", name): name for name in ("sqrt", "floor", "ceil", "abs")},
        ("f", "minimum"): "f_min",
        ("f", "maximum"): "f_max",
        ("i", "minimum"): "min",
        ("i", "maximum"): "max",
        ("i", "smaller"): "min",
        ("i", "larger"): "max",
        ("i", "abs"): "abs",
        ("i", "floordiv"): "p_floordiv",
        ("i", "mod"): "p_mod",
        ("i", "float"): "f32",
        ("f", "int"): "p_int",
    },
    let="let {name}: {type} = {value};",
    acc="var {name}: {type} = {value};",
    loop="for (var {var}: {type} = {start}; {var} < {stop}; {var} += {step}) {{",
    stack="var {name}: array<{type}, {size}>;",
    barrier="workgroupBarrier();",
    select="select({no}, {yes}, {condition})",
    infix={k: v for k, v in INFIX.items() if k not in ("shl", "shr")},
    truth=("false", "true"),
    large="({})",
)


class WGSLPrinter(ThreadPrinter):
    """Prints loops as WGSL."""

    name = "WGSL"
    words = WORDS

    def __init__(self) -> None:
        super().__init__()
        self.current = ""
        self.held: dict[str, str] = {}

    def _variant(self, name: str, variant: Variant) -> str:
        self.current, self.held = name, {}
        text = super()._variant(name, variant)
        return "".join((*self.held.values(), text))

    def statement(self, s: Statement) -> list[str]:
        """Memory of a group is declared outside of the function, under a name of its own."""
        if isinstance(s, Alloc) and s.space == "shared":
            kind = self.words.holds["f32" if s.base == "f" else "i32"]
            name = f"{self.current}_{s.name}"
            self.held[s.name] = f"var<workgroup> {name}: array<{kind}, {self.x(s.size)}>;\n"
            return []
        return super().statement(s)

    def array(self, name: str) -> str:
        """The variable that holds an array or a buffer."""
        return f"{self.current}_{name}" if name in self.held else super().array(name)

    def head(self, loops: Loops) -> str:
        """Bindings and functions."""
        given = len(loops.inputs)
        numbers = -(-(len(loops.sizes) + 3) // 4)
        lines = [f"@group(0) @binding(0) var<uniform> numbers: array<vec4<i32>, {numbers}>;"]
        for n, array in enumerate(self.arrays):
            lines.append(self._binding(n + 1, self.array(array.name), self._kind(array, n < given), n >= given))
        lines.append(self._binding(len(self.arrays) + 1, "scratch", "f32", True))
        return "\n".join((*lines, shared("prelude.wgsl")))

    def _kind(self, array: Array, const: bool) -> str:
        held = self.words.holds[array.dtype]
        return f"atomic<{held}>" if array.dtype in _NARROW and not const else held

    def _binding(self, number: int, name: str, kind: str, writable: bool) -> str:
        access = "read_write" if writable else "read"
        return f"@group(0) @binding({number}) var<storage, {access}> {name}: array<{kind}>;"

    def function(self, name: str, body: str) -> str:
        """An entry point; a second row of groups goes on where the first ends."""
        names = [*self.loops.sizes, "tasks"]
        lets = "".join(f"  let {s} = {self._number(n)};\n" for n, s in enumerate(names))
        bits = f"bitcast<f32>({self._number(len(names))})", f"bitcast<f32>({self._number(len(names) + 1)})"
        return (
            f"@compute @workgroup_size({GROUP})\nfn {name}(@builtin(workgroup_id) group: vec3<u32>, "
            "@builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lane: u32) {\n"
            f"  let task = i32((group.y * groups.x + group.x) * {GROUP}u + lane);\n{lets}"
            f"  INFINITY = {bits[0]};\n  NAN = {bits[1]};\n{body}}}\n"
        )

    def _number(self, n: int) -> str:
        return f"numbers[{n // 4}][{n % 4}]"

    def read(self, x: Read) -> str:
        """An element; of a narrow type, out of its word."""
        if x.dtype not in _NARROW:
            return super().read(x)
        offset = self.x(x.offset)
        word = f"{self.array(x.array)}[({offset}) >> {_NARROW[x.dtype]}u]"
        return f"{x.dtype}_in({word}, {offset})"

    def write(self, s: Write) -> str:
        """Stores one number; of a narrow type, its bits into a word that is zero there."""
        if s.dtype not in _NARROW:
            return super().write(s)
        offset = self.x(s.offset)
        word = f"{self.array(s.array)}[({offset}) >> {_NARROW[s.dtype]}u]"
        return f"atomicOr(&{word}, {s.dtype}_bits({self.x(s.value)}, {offset}));"

    def do(self, x: Do) -> str:
        """An operation; the number of places of a shift has no sign."""
        if x.op in ("shl", "shr"):
            sign = "<<" if x.op == "shl" else ">>"
            return f"({self.x(x.args[0])} {sign} u32({self.x(x.args[1])}))"
        return super().do(x)
