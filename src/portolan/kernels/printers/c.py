"""C with the vector extensions of gcc and clang: one shared library for each kernel and schedule, for all sizes.

    void NAME(void *const *arrays, const int64_t *sizes, void *workspace, int64_t first, int64_t last);
    int64_t NAME_tasks(const int64_t *sizes);
    int64_t NAME_workspace(const int64_t *sizes);

Arrays are the arguments and then the results, contiguous; `first` to `last` are tasks, which do not depend on each
other and may run on any threads; the workspace (bytes, aligned to 64) belongs to one thread at a time.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path

from portolan.kernels.ir import (
    Acc,
    Alloc,
    Array,
    Do,
    Fetch,
    For,
    If,
    Let,
    Lit,
    Loops,
    Nest,
    Rank,
    Read,
    Ref,
    Statement,
    Turn,
    Type,
    Update,
    Variant,
    Write,
    X,
    statements,
)

_ARGUMENTS = "(void *const *arrays, const int64_t *sizes, void *workspace, int64_t first, int64_t last)"
_SIZES = "const int64_t *sizes"
_HOLDS = {"f32": "float", "f16": "uint16_t", "bf16": "uint16_t", "i8": "int8_t", "i32": "int32_t"}
_INFIX = {
    "add": "+",
    "sub": "-",
    "mul": "*",
    "div": "/",
    "shl": "<<",
    "shr": ">>",
    "bitand": "&",
    "bitor": "|",
    "bitxor": "^",
    "lt": "<",
    "le": "<=",
    "gt": ">",
    "ge": ">=",
    "eq": "==",
    "ne": "!=",
}
_COMPARISONS = frozenset(("lt", "le", "gt", "ge", "eq", "ne"))
_LIBM = {name: f"{name}f" for name in ("exp", "log", "sqrt", "tanh", "erf", "sin", "cos", "floor", "ceil", "pow")}
_SCALAR = {
    ("i", "minimum"): "p_min",
    ("i", "maximum"): "p_max",
    ("i", "floordiv"): "p_floordiv",
    ("i", "mod"): "p_mod",
    ("i", "abs"): "p_abs",
    ("i", "larger"): "p_max",
    ("i", "smaller"): "p_min",
    ("f", "larger"): "f_larger",
    ("f", "smaller"): "f_smaller",
    ("f", "minimum"): "f_min",
    ("f", "maximum"): "f_max",
    ("f", "abs"): "fabsf",
    ("f", "sigmoid"): "f_sigmoid",
    ("f", "exp"): "f_exp",
}
_VECTOR = {"minimum": "min", "maximum": "max"}


def prelude() -> str:
    """The part that all kernels share."""
    return (Path(__file__).parent / "prelude.h").read_text(encoding="utf-8")


def function_name(kernel: str) -> str:
    """The C name of a kernel: never a word of the language's own."""
    return f"portolan_{kernel}"


class CPrinter:
    """Prints loops as C."""

    def source(self, loops: Loops) -> str:
        """The whole file."""
        self.loops = loops
        name = function_name(loops.name)
        nests = [self._nest(f"{name}_{number}", nest) for number, nest in enumerate(loops.nests)]
        return "\n".join((f"#define LANES {loops.lanes}", prelude(), *nests, self._entry(name, len(loops.nests))))

    def _entry(self, name: str, nests: int) -> str:
        tasks = " + ".join(f"{name}_{n}_tasks(sizes)" for n in range(nests))
        space = f"{name}_0_space(sizes)"
        for n in range(1, nests):
            space = f"p_max({space}, {name}_{n}_space(sizes))"
        calls = "\n".join(
            f"  count = {name}_{n}_tasks(sizes);\n"
            f"  if (first < count) {name}_{n}(arrays, sizes, workspace, p_max(first, 0), p_min(last, count));\n"
            "  first -= count; last -= count;"
            for n in range(nests)
        )
        return (
            f"int64_t {name}_tasks(const int64_t *sizes) {{ return {tasks}; }}\n"
            f"int64_t {name}_workspace(const int64_t *sizes) {{ return 4 * {space} + 64; }}\n"
            f"void {name}(void *const *arrays, const int64_t *sizes, void *workspace, int64_t first, int64_t last) {{\n"
            f"  int64_t count;\n{calls}\n}}\n"
        )

    def _nest(self, name: str, nest: Nest) -> str:
        parts = [self._variant(f"{name}_{n}", variant) for n, variant in enumerate(nest.variants)]
        for what, give in (("tasks", "tasks"), ("space", "space")):
            picks = "".join(f"  {self._when(v)}return {name}_{n}_{give}(sizes);\n" for n, v in enumerate(nest.variants))
            parts.append(f"static int64_t {name}_{what}({_SIZES}) {{\n{self._sizes()}{picks}  return 0;\n}}")
        picks = "".join(
            f"  {self._when(v)}{{ {name}_{n}(arrays, sizes, workspace, first, last); return; }}\n"
            for n, v in enumerate(nest.variants)
        )
        head = f"static void {name}{_ARGUMENTS}"
        return "\n".join((*parts, f"{head} {{\n{self._sizes()}{picks}}}"))

    def _when(self, variant: Variant) -> str:
        return "" if variant.when is None else f"if ({self.x(variant.when)}) "

    def _sizes(self) -> str:
        lines = (f"  const int64_t {s} = sizes[{n}]; (void){s};\n" for n, s in enumerate(self.loops.sizes))
        return "".join(lines)

    def _variant(self, name: str, variant: Variant) -> str:
        arrays = "".join(self._array(n, a) for n, a in enumerate((*self.loops.inputs, *self.loops.outputs)))
        buffers = [s for s in statements(variant.body) if isinstance(s, Alloc) and s.space == "workspace"]
        places, total = [], "0"
        for buffer in buffers:
            kind = "float" if buffer.base == "f" else "int32_t"
            places.append(f"  {kind} *restrict const {buffer.name} = ({kind} *)workspace + {total};\n")
            total = f"({total} + (({self.x(buffer.size)}) + 15) / 16 * 16)"
        return (
            f"static int64_t {name}_tasks({_SIZES}) {{\n{self._sizes()}  return {self.x(variant.tasks)};\n}}\n"
            f"static int64_t {name}_space({_SIZES}) {{\n{self._sizes()}  return {total};\n}}\n"
            f"static void {name}{_ARGUMENTS} {{\n{self._sizes()}{arrays}{''.join(places)}"
            f"  (void)workspace;\n  for (int64_t task = first; task < last; task++) {{\n"
            f"{self.block(variant.body, 2)}  }}\n}}"
        )

    def _array(self, number: int, array: Array) -> str:
        holds = _HOLDS[array.dtype]
        const = "const " if number < len(self.loops.inputs) else ""
        return f"  {const}{holds} *restrict const a_{array.name} = arrays[{number}]; (void)a_{array.name};\n"

    # Statements -----------------------------------------------------------------------------------------------------

    def block(self, body: Sequence[Statement], depth: int) -> str:
        """Statements, indented."""
        return "".join(f"{'  ' * depth}{line}\n" for s in body for line in self.statement(s, depth))

    def statement(self, s: Statement, depth: int) -> list[str]:
        """One statement as lines; inner blocks bring their own indentation."""
        match s:
            case Let(name=name, value=value):
                return [f"const {self.type(value.type)} {name} = {self.x(value)};"]
            case Acc(name=name, value=value):
                return [f"{self.type(value.type)} {name} = {self.x(value)};"]
            case Update(name=name, value=value):
                return [f"{name} = {self.x(value)};"]
            case Write():
                return [self._write(s)]
            case Fetch(array=array, offset=offset):
                return [f"__builtin_prefetch({self._name(array)} + {self.x(offset)}, 0, 2);"]
            case Alloc(space="workspace"):
                return []
            case Alloc(name=name, base=base, size=size):
                return [f"{'float' if base == 'f' else 'int32_t'} {name}[{self.x(size)}] __attribute__((aligned(64)));"]
            case Rank():
                args = (
                    f"{s.best} + {self.x(s.offset)}, {s.places} + {self.x(s.offset)}, {s.n}, "
                    f"{s.scores} + {self.x(s.start)}, {self.x(s.count)}, {self.x(s.first)}"
                )
                return [f"rank({args});"]
            case Turn():
                to, source = self._name(s.to), self._name(s.source)
                numbers = ", ".join(map(self.x, (s.source_row, s.rows, s.columns)))
                begun = f"{to} + {self.x(s.to_offset)}, {self.x(s.to_row)}, {source} + {self.x(s.source_offset)}"
                return [f"turned_f32({begun}, {numbers});"]
            case For(var=var, start=start, stop=stop, step=step, body=body, note=note):
                said = f"  /* {note} */" if note else ""
                head = f"for (int64_t {var} = {self.x(start)}; {var} < {self.x(stop)}; {var} += {step}) {{{said}"
                return [head, *self._inner(body, depth), "}"]
            case If(condition=condition, body=body, other=other):
                lines = [f"if ({self.x(condition)}) {{", *self._inner(body, depth)]
                return [*lines, "} else {", *self._inner(other, depth), "}"] if other else [*lines, "}"]

    def _inner(self, body: Sequence[Statement], depth: int) -> list[str]:
        return [f"  {line}" for s in body for line in self.statement(s, depth + 1)]

    def _write(self, s: Write) -> str:
        array, offset, value = self._name(s.array), self.x(s.offset), self.x(s.value)
        if s.value.type.lanes == 1:
            return f"{array}[{offset}] = {self._narrow(s.dtype, value)};"
        vector = "V" if s.value.type.base == "f" else "VI"
        if s.stride is None and s.dtype in ("f32", "i32"):
            return f"*({vector} *)({array} + {offset}) = {value};"
        step = "l" if s.stride is None else f"l * {self.x(s.stride)}"
        lane = self._narrow(s.dtype, "w_[l]")
        return f"{{ {vector} w_ = {value}; {_HOLDS[s.dtype]} *o_ = {array} + {offset}; EACH o_[{step}] = {lane}; }}"

    def _narrow(self, dtype: str, value: str) -> str:
        match dtype:
            case "f16" | "bf16":
                return f"{dtype}_of_f({value})"
            case "i8":
                return f"(int8_t)({value})"
            case "i32":
                return f"(int32_t)({value})"
            case _:
                return value

    # Expressions ----------------------------------------------------------------------------------------------------

    def type(self, type: Type) -> str:
        """The C type of a value."""
        if type.lanes > 1:
            return "V" if type.base == "f" else "VI"
        return {"f": "float", "i": "int64_t", "m": "int"}[type.base]

    def x(self, x: X) -> str:
        """An expression."""
        match x:
            case Lit():
                return literal(x)
            case Ref(name=name):
                return name
            case Read():
                return self._read(x)
            case Do():
                return self._do(x)

    def _name(self, array: str) -> str:
        own = {a.name for a in (*self.loops.inputs, *self.loops.outputs)}
        return f"a_{array}" if array in own else array

    def _read(self, x: Read) -> str:
        array, offset = self._name(x.array), self.x(x.offset)
        if x.type.lanes == 1:
            wide = {"f16": "f_of_f16", "bf16": "f_of_bf16"}.get(x.dtype, "")
            return f"{wide}({array}[{offset}])" if wide else f"{array}[{offset}]"
        at = f"{array} + {offset}"
        match x.mode:
            case "plain":
                return f"plain_{x.dtype}({at})"
            case "strided" | "guarded" | "reversed":
                return f"{x.mode}_{x.dtype}({', '.join((at, *map(self.x, x.args)))})"
            case _:
                pairs = zip(x.args[::2], x.args[1::2], strict=True)
                place = " + ".join(f"({self.x(i)})[l] * (int64_t)({self.x(s)})" for i, s in pairs)
                vector = self.type(x.type)
                each = f"EACH g_[l] = GET_{x.dtype}(b_[{place}]); g_;"
                return f"({{ {vector} g_; const {_HOLDS[x.dtype]} *b_ = {at}; {each} }})"

    def _do(self, x: Do) -> str:
        base, wide = x.args[0].type.base, x.args[0].type.lanes > 1
        args = [self.x(a) for a in x.args]
        if x.op == "splat":
            return self._splat(x, args[0])
        if x.op == "select":
            if x.args[0].type.lanes == 1:
                cast = f"({self.type(x.type)})" if x.type.lanes > 1 else ""
                return f"({args[0]} ? {cast}{args[1]} : {cast}{args[2]})"
            return f"SEL({self.type(x.type)}, {', '.join(args)})"
        if x.op in _COMPARISONS:
            return f"({'(VI)' if wide else ''}({args[0]} {_INFIX[x.op]} {args[1]}))"
        if x.op in ("and", "or", "not"):
            return self._logic(x.op, args, wide)
        if x.op in _INFIX:
            return f"({args[0]} {_INFIX[x.op]} {args[1]})"
        if x.op in ("neg", "invert"):
            return f"({'-' if x.op == 'neg' else '~'}{args[0]})"
        if x.op == "float":
            return f"__builtin_convertvector({args[0]}, V)" if wide else f"((float){args[0]})"
        if x.op == "int":
            return f"vi_of_v({args[0]})" if wide else f"p_int({args[0]})"
        return f"{self._function(x.op, base, wide)}({', '.join(args)})"

    def _function(self, name: str, base: str, wide: bool) -> str:
        if wide:
            return f"{'v' if base == 'f' else 'vi'}_{_VECTOR.get(name, name)}"
        return _SCALAR.get((base, name)) or _LIBM[name]

    def _splat(self, x: Do, value: str) -> str:
        if x.type.lanes == 1:
            return value
        match x.type.base:
            case "f":
                return f"VF({value})"
            case "i":
                return f"VN({value})"
            case _:
                return f"VN(-(int32_t)!!({value}))"

    def _logic(self, op: str, args: list[str], wide: bool) -> str:
        if op == "not":
            return f"(~{args[0]})" if wide else f"(!{args[0]})"
        sign = {"and": "&", "or": "|"}[op]
        return f"({args[0]} {sign} {args[1]})"


def literal(x: Lit) -> str:
    """A number in C, exact."""
    if x.type.base == "m":
        return str(int(bool(x.value)))
    if x.type.base == "i":
        return f"{int(x.value)}LL" if abs(int(x.value)) >= 2**31 else str(int(x.value))
    value = float(x.value)
    if value != value:
        return "NAN"
    if value in (float("inf"), float("-inf")):
        return "INFINITY" if value > 0 else "(-INFINITY)"
    try:
        value = struct.unpack("f", struct.pack("f", value))[0]
    except OverflowError:
        return "INFINITY" if value > 0 else "(-INFINITY)"
    return f"{value.hex()}f" if value >= 0 else f"({value.hex()}f)"
