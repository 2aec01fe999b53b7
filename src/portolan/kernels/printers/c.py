"""C with the vector extensions of gcc and clang: one shared library for each kernel and schedule, for all sizes.

    void NAME(void *const *arrays, const int64_t *sizes, void *workspace, int64_t first, int64_t last);
    int64_t NAME_tasks(const int64_t *sizes);
    int64_t NAME_workspace(const int64_t *sizes);

Arrays are the arguments and then the results, contiguous; `first` to `last` are tasks, which do not depend on each
other and may run on any threads; the workspace (bytes, aligned to 64) belongs to one thread at a time.
"""

from __future__ import annotations

from portolan.kernels.ir import (
    Alloc,
    Array,
    Do,
    Fetch,
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
from portolan.kernels.printers.clike import CLikePrinter, Words
from portolan.kernels.printers.files import shared
from portolan.kernels.printers.signs import COMPARISONS, INFIX

_ARGUMENTS = "(void *const *arrays, const int64_t *sizes, void *workspace, int64_t first, int64_t last)"
_SIZES = "const int64_t *sizes"
_FUNCTIONS = ("exp", "log", "sqrt", "tanh", "erf", "sin", "cos", "floor", "ceil", "pow")
WORDS = Words(
    types={"f": "float", "i": "int64_t", "m": "int"},
    holds={"f32": "float", "f16": "uint16_t", "bf16": "uint16_t", "i8": "int8_t", "i32": "int32_t"},
    calls={
        **{("f", name): f"{name}f" for name in _FUNCTIONS},
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
        ("i", "float"): "(float)",
        ("f", "int"): "p_int",
    },
    widen={"f16": "f_of_f16({})", "bf16": "f_of_bf16({})"},
    narrow={"f16": "f16_of_f({})", "bf16": "bf16_of_f({})", "i8": "(int8_t)({})", "i32": "(int32_t)({})"},
    stack="{type} {name}[{size}] __attribute__((aligned(64)));",
)
"""C, and what the languages that grew out of it share."""
#: Loops that read at many computed places: left alone, gcc moves their addresses in and out of vector registers.
_MANY_PLACES = """#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC optimize("ira-region=all")
#endif"""
_VECTOR = {"minimum": "min", "maximum": "max"}


def prelude() -> str:
    """The part that all kernels share."""
    return shared("prelude.h")


def function_name(kernel: str) -> str:
    """The C name of a kernel: never a word of the language's own."""
    return f"portolan_{kernel}"


def _maskable(s: If) -> bool:
    """Whether a condition holds a few vectors of floats that are read, computed with and added up, and nothing else."""

    def plain(x: X) -> bool:
        return isinstance(x, (Lit, Ref)) or (isinstance(x, Do) and all(map(plain, x.args)))

    wide = [x for x in s.body if isinstance(x, (Let, Update)) and x.value.type.base == "f" and x.value.type.lanes > 1]
    if s.other or len(wide) != len(s.body) or not any(isinstance(x, Update) for x in wide):
        return False
    reads = [x.value for x in wide if isinstance(x, Let) and isinstance(x.value, Read)]
    rest = [x.value for x in wide if not (isinstance(x, Let) and isinstance(x.value, Read))]
    return all(r.mode == "plain" and r.dtype == "f32" for r in reads) and all(map(plain, rest))


class CPrinter(CLikePrinter):
    """Prints loops as C with vectors."""

    words = WORDS
    name = "C"

    def source(self, loops: Loops) -> str:
        """The whole file."""
        self.loops = loops
        name = function_name(loops.name)
        nests = [self._nest(f"{name}_{number}", nest) for number, nest in enumerate(loops.nests)]
        bodies = (v.body for nest in loops.nests for v in nest.variants)
        fetches = any(isinstance(s, Fetch) for body in bodies for s in statements(body))
        head = (f"#define LANES {loops.lanes}", *((_MANY_PLACES,) if fetches else ()))
        return "\n".join((*head, prelude(), *nests, self._entry(name, len(loops.nests))))

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
        holds = WORDS.holds[array.dtype]
        const = "const " if number < len(self.loops.inputs) else ""
        return f"  {const}{holds} *restrict const a_{array.name} = arrays[{number}]; (void)a_{array.name};\n"

    # Statements -----------------------------------------------------------------------------------------------------

    def statement(self, s: Statement) -> list[str]:
        """What only C has a routine for; the rest as in all languages."""
        match s:
            case Fetch(array=array, offset=offset):
                return [f"__builtin_prefetch({self.array(array)} + {self.x(offset)}, 0, 2);"]
            case Rank():
                args = (
                    f"{s.best} + {self.x(s.offset)}, {s.places} + {self.x(s.offset)}, {s.n}, "
                    f"{s.scores} + {self.x(s.start)}, {self.x(s.count)}, {self.x(s.first)}"
                )
                return [f"rank({args});"]
            case Turn():
                to, source = self.array(s.to), self.array(s.source)
                numbers = ", ".join(map(self.x, (s.source_row, s.rows, s.columns)))
                begun = f"{to} + {self.x(s.to_offset)}, {self.x(s.to_row)}, {source} + {self.x(s.source_offset)}"
                return [f"turned_f32({begun}, {numbers});"]
            case If() if self.loops.lanes > 1 and _maskable(s):
                # Which of two ways a branch goes that data decides cannot be foretold.
                masked = [f"  {line}" for line in self._masked(s)]
                return ["#ifdef HAVE_MASKS", "{", *masked, "}", "#else", *super().statement(s), "#endif"]
            case _:
                return super().statement(s)

    def _masked(self, s: If) -> list[str]:
        """The statements of a condition without a branch: what does not count is not read, and changes nothing."""
        lines = [f"const mask_t k_ = MASK({self.x(s.condition)});"]
        for inner in s.body:
            match inner:
                case Let(name=name, value=Read() as read):
                    lines.append(f"const V {name} = masked_f32({self.array(read.array)} + {self.x(read.offset)}, k_);")
                case Update(name=name, value=value):
                    lines.append(f"{name} = MERGED(k_, {name}, {self.x(value)});")
                case _:
                    lines += self.statement(inner)
        return lines

    def write(self, s: Write) -> str:
        """Stores a number, or the lanes of a vector."""
        if s.value.type.lanes == 1:
            return super().write(s)
        array, offset, value = self.array(s.array), self.x(s.offset), self.x(s.value)
        vector = "V" if s.value.type.base == "f" else "VI"
        if s.stride is None and s.dtype in ("f32", "i32"):
            return f"*({vector} *)({array} + {offset}) = {value};"
        step = "l" if s.stride is None else f"l * {self.x(s.stride)}"
        lane = self.narrow(s.dtype, "w_[l]")
        return (
            f"{{ {vector} w_ = {value}; {WORDS.holds[s.dtype]} *o_ = {array} + {offset}; EACH o_[{step}] = {lane}; }}"
        )

    # Expressions ----------------------------------------------------------------------------------------------------

    def type(self, type: Type) -> str:
        """The C type of a value."""
        if type.lanes > 1:
            return "V" if type.base == "f" else "VI"
        return super().type(type)

    def read(self, x: Read) -> str:
        """A number, or the lanes of a vector."""
        if x.type.lanes == 1:
            return super().read(x)
        at = f"{self.array(x.array)} + {self.x(x.offset)}"
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
                return f"({{ {vector} g_; const {WORDS.holds[x.dtype]} *b_ = {at}; {each} }})"

    def do(self, x: Do) -> str:
        """An operation on numbers or vectors."""
        args = [self.x(a) for a in x.args]
        if x.op == "splat":
            return self._splat(x, args[0])
        if x.op == "select" and x.args[0].type.lanes == 1 and x.type.lanes > 1:
            cast = f"({self.type(x.type)})"
            return f"({args[0]} ? {cast}{args[1]} : {cast}{args[2]})"
        if x.args[0].type.lanes == 1:
            return super().do(x)
        return self._vector(x, args)

    def _vector(self, x: Do, args: list[str]) -> str:
        """An operation on vectors."""
        if x.op == "select":
            return f"SEL({self.type(x.type)}, {', '.join(args)})"
        if x.op in COMPARISONS:
            return f"((VI)({args[0]} {INFIX[x.op]} {args[1]}))"
        if x.op == "not":
            return f"(~{args[0]})"
        if x.op in ("and", "or", "neg", "invert") or x.op in INFIX:
            return super().do(x)
        if x.op == "float":
            return f"__builtin_convertvector({args[0]}, V)"
        if x.op == "int":
            return f"vi_of_v({args[0]})"
        kind = "v" if x.args[0].type.base == "f" else "vi"
        return f"{kind}_{_VECTOR.get(x.op, x.op)}({', '.join(args)})"

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
