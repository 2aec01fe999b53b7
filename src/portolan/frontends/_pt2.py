"""Loading a `.pt2` without running code that is hidden in it.

`torch.export.load` trusts its file: it unpickles (with `weights_only=False` where the safe way fails), evaluates size
expressions as Python through SymPy, imports modules that tree descriptions name, calls any function below `torch` that
a node names, and runs native libraries. All of that was read in torch 2.13's `torch/export/pt2_archive/_package.py`,
`torch/_export/serde/serialize.py` and `torch/utils/_pytree.py`. What an ordinary export needs is little, so
everything is looked at first, with torch's own archive reader, and anything beyond that is refused.
"""

from __future__ import annotations

import ast
import io
import json
import math
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from portolan.errors import ModelError, UnsupportedOperator

_HINT = "export it again from its source with `torch.export.save`, or give `file.py:factory`"
_CUSTOM = "export the model with standard operators in its place; an ONNX file runs with `--backend onnxruntime`"
_NAMESPACES = ("aten", "prims", "torchvision", "quantized_decomposed")
_HIGHER_ORDER = ("cond", "scan", "while_loop", "map_impl", "wrap_with_set_grad_enabled", "wrap_with_autocast")
_ARITHMETIC = (
    "add sub mul truediv floordiv mod pow neg pos abs eq ne lt le gt ge and_ or_ xor not_ invert lshift rshift getitem"
)
#: Functions in size expressions: those torch prints, and SymPy's own that they simplify to.
_EXPRESSIONS = (
    "FloorDiv ModularIndexing Where PythonMod Mod CleanDiv CeilToInt FloorToInt CeilDiv RShift "
    "FloatTrueDiv IntTrueDiv IsNonOverlappingAndDenseIndicator TruncToFloat TruncToInt RoundToInt "
    "RoundDecimal ToFloat Identity Max Min Eq Ne Lt Le Gt Ge And Or Not Abs Add Mul floor ceiling Integer Rational"
)


def load_program(path: Path) -> Any:
    """Reads an exported program.

    Args:
        path: a `.pt2` file that `torch.export.save` wrote.

    Returns:
        A `torch.export.ExportedProgram`.

    Raises:
        ModelError: not such a file, damaged, or it holds anything that loading it would run.
    """
    import torch

    check(path)
    try:
        return torch.export.load(str(path))
    except Exception as error:  # torch raises whatever its deserializer meets
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelError(
            f"`{path}` cannot be loaded: {reason[:200]}",
            hint=f"it may come from another torch than {torch.__version__}: {_HINT}",
        ) from error


def check(path: Path) -> None:
    """Refuses what is no exported program, and one that would run code when it is loaded.

    Raises:
        ModelError: says what was found.
    """
    if not path.is_file() or not zipfile.is_zipfile(path):
        raise ModelError(f"`{path}` is not a `.pt2` archive, or is truncated", hint=_HINT)
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    if "version" in names:
        raise _refused(path, "it has the format of torch before 2.8, which holds pickles")
    records, read = _reader(path, names)
    if any("aotinductor/" in name for name in records) or any(name.endswith((".so", ".pyd")) for name in records):
        raise _refused(path, "it holds native code compiled by AOTInductor")
    if not any(name.startswith("models/") for name in records):
        raise ModelError(f"`{path}` holds no exported program", hint=_HINT)
    for name in records:
        if name.endswith((".pt", ".pkl")):
            _check_pickle(path, name, read(name))
        elif name.endswith(".json"):
            _check_json(path, name, _parsed(path, name, read(name)))


def _reader(path: Path, names: list[str]) -> tuple[list[str], Callable[[str], bytes]]:
    """The archive as torch itself reads it: another zip reader could be shown other contents."""
    import torch

    try:
        archive = torch._C.PyTorchFileReader(str(path))
        if bytes(archive.get_record("archive_format")) != b"pt2":
            raise RuntimeError
    except RuntimeError:
        if any(name.endswith("data.pkl") for name in names):
            raise _refused(path, "it was written by `torch.save` or `torch.jit.save`: it is a pickle") from None
        raise ModelError(f"`{path}` is not a `.pt2` archive, or is damaged", hint=_HINT) from None
    return list(archive.get_all_records()), lambda name: bytes(archive.get_record(name))


def _refused(path: Path, reason: str) -> ModelError:
    return ModelError(f"`{path}` is refused, since loading it would run code: {reason}", hint=_HINT)


def _check_pickle(path: Path, name: str, data: bytes) -> None:
    """The loader falls back from `weights_only=True` to an unrestricted unpickler, so the former has to succeed."""
    import torch

    if not data:
        return
    try:
        torch.load(io.BytesIO(data), weights_only=True)
    except Exception as error:
        raise _refused(path, f"`{name}` is a pickle of more than tensors") from error


def _parsed(path: Path, name: str, data: bytes) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ModelError(f"`{name}` in `{path}` is damaged", hint=_HINT) from error


def _check_json(path: Path, name: str, value: Any) -> None:
    """Looks at every node, size expression, payload and tree description below `value`."""
    try:
        _walk(path, name, value)
    except RecursionError:
        raise ModelError(f"`{name}` in `{path}` is nested too deeply", hint=_HINT) from None


def _walk(path: Path, name: str, value: Any) -> None:
    if isinstance(value, list):
        for item in value:
            _walk(path, name, item)
    elif isinstance(value, str):
        # Tree descriptions are JSON in strings, and their contexts again.
        if value.lstrip().startswith(("{", "[", '"')):
            try:
                inner = json.loads(value)
            except ValueError:
                return
            _walk(path, name, inner)
    elif isinstance(value, dict):
        _check_dict(path, name, value)
        for item in value.values():
            _walk(path, name, item)


def _check_dict(path: Path, name: str, value: dict[str, Any]) -> None:
    if value.get("use_pickle"):
        raise _refused(path, f"`{value.get('path_name')}` in `{name}` is a pickle")
    stored = str(value.get("path_name", ""))
    if stored and not re.fullmatch(r"(weight|tensor)_\d+", stored):
        raise _refused(path, f"`{stored}` in `{name}` is a custom object, not a tensor")
    if "__enum__" in value or "default_factory_module" in value:
        raise _refused(path, f"a tree description in `{name}` imports a module")
    for key in ("target", "as_operator"):
        target = value.get(key)
        if isinstance(target, str) and not _known_operator(target):
            if (custom := _custom_operator(target)) is not None:
                raise UnsupportedOperator(f"torch has no operator `{custom}`, which `{path}` needs", hint=_CUSTOM)
            raise _refused(path, f"`{target[:80]}` in `{name}` is not an operator of torch")
    expression = value.get("expr_str")
    if expression is not None and not _is_arithmetic(expression):
        raise _refused(path, f"the size `{str(expression)[:80]}` in `{name}` is not arithmetic")


def _custom_operator(target: str) -> str | None:
    """The name of an operator that somebody's package would have to register first; None for anything else."""
    parts = target.split(".")
    own = parts[:2] == ["torch", "ops"] and len(parts) == 5 and parts[2] not in (*_NAMESPACES, "higher_order")
    return f"{parts[2]}.{parts[3]}" if own and all(part.isidentifier() for part in parts) else None


def _known_operator(target: str) -> bool:
    """Whether a node's target is an operator as an export writes it, not some other callable that torch can reach."""
    import torch

    parts = target.split(".")
    if parts[0] == "_operator" and len(parts) == 2:
        return parts[1] in _ARITHMETIC.split()
    if parts[0] == "math" and len(parts) == 2:
        return not parts[1].startswith("_") and hasattr(math, parts[1])
    if parts[0] == "torch" and len(parts) == 2:
        return re.fullmatch(r"_?sym_[a-z]+", parts[1]) is not None and hasattr(torch, parts[1])
    if parts[:2] != ["torch", "ops"]:
        return False
    if len(parts) == 4 and parts[2] == "higher_order":
        return parts[3] in _HIGHER_ORDER
    if len(parts) != 5 or parts[2] not in _NAMESPACES:
        return False
    try:
        packet = getattr(getattr(torch.ops, parts[2]), parts[3])
        overload = getattr(packet, parts[4]) if parts[4] in packet.overloads() else None
    except AttributeError:
        return False
    return overload is not None and _is_pure(overload)


def _is_pure(overload: Any) -> bool:
    """False for operators that reach outside: TorchScript's (save, open, ...) and those that take a file's name."""
    import torch

    if not torch._C._dispatch_has_kernel(overload.name()):
        return False
    return not any("file" in argument.name for argument in overload._schema.arguments)


def _is_arithmetic(expression: object) -> bool:
    """Whether SymPy, which evaluates the text as Python, meets only numbers, symbols and known functions."""
    if not isinstance(expression, str) or len(expression) > 2000:
        return False
    try:
        tree = ast.parse(expression, mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return _is_number(tree.body)


def _is_number(node: ast.expr) -> bool:
    match node:
        case ast.Constant(value=value):
            return isinstance(value, (int, float))
        case ast.Name():
            return True
        case ast.UnaryOp(operand=inner):
            return _is_number(inner)
        case ast.BinOp(left=left, op=operator, right=right):
            return _is_number(left) and (_small(right) if isinstance(operator, ast.Pow) else _is_number(right))
        case ast.BoolOp(values=values):
            return all(map(_is_number, values))
        case ast.Compare(left=left, comparators=others):
            return all(map(_is_number, (left, *others)))
        case ast.Call(func=ast.Name(id="Symbol" | "Float" as function), args=[ast.Constant(value=str(text))]):
            # As SymPy writes a symbol or number: anywhere else it would evaluate a string.
            flags = all(isinstance(k.value, ast.Constant) and isinstance(k.value.value, int) for k in node.keywords)
            return flags and re.fullmatch(r"[A-Za-z_]\w*" if function == "Symbol" else r"[-+\d.e]+", text) is not None
        case ast.Call(func=ast.Name(id="Pow" | "PowByNatural" | "FloatPow" | "LShift"), args=[base, exponent]):
            return not node.keywords and _is_number(base) and _small(exponent)
        case ast.Call(func=ast.Name(id=function), args=values):
            return not node.keywords and function in _EXPRESSIONS.split() and all(map(_is_number, values))
    return False


def _small(exponent: ast.expr) -> bool:
    """A power of numbers is worked out at once, and a tower of them would take for ever."""
    match exponent:
        case ast.Constant(value=int(value) | float(value)):
            return value <= 16
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant()) | ast.Call(func=ast.Name(id="Integer"), args=[_]):
            inner = exponent.operand if isinstance(exponent, ast.UnaryOp) else exponent.args[0]
            return _small(inner)
    return False
