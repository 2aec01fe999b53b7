"""Golden inputs and outputs: what the bundle must still answer, wherever it runs.

Arrays are stacked as in `--data`: the first axis holds the samples. An input with one axis more than the model's is a
whole input per call (`stack` makes these); otherwise one call takes one entry of the first axis, or as many as a static
first dimension asks for. Outputs of all calls are joined along the first axis (`join`). They are compared within a
tolerance, never for equality: processors differ in the seventh digit of f32, and more with int8.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from portolan.bundle.archive import Archive, write_zip
from portolan.bundle.names import broken, show
from portolan.core.signature import Signature, TensorSpec
from portolan.errors import UsageError, VerificationFailed

Arrays = Mapping[str, np.ndarray]
#: Bytes of each of the two files.
MOST_GOLDEN = 2**28
#: The header as NumPy writes it.
_HEADER = re.compile(
    rb"\{'descr': '([<>|=][a-zA-Z]\d{0,9})', 'fortran_order': (True|False), 'shape': \(([0-9, ]*)\), \} *\n"
)


@dataclass(frozen=True)
class Tolerance:
    """`|got - golden| <= atol + rtol * |golden|`, for each element."""

    rtol: float
    atol: float


@dataclass(frozen=True)
class Difference:
    """The element of one output that is furthest beyond, or nearest to, what is allowed."""

    output: str
    worst: float
    allowed: float
    at: tuple[int, ...]
    ok: bool

    def to_json(self) -> dict[str, Any]:
        """As plain data; a difference that is no number is null."""
        worst = self.worst if math.isfinite(self.worst) else None
        return {"output": self.output, "worst": worst, "allowed": self.allowed, "at": list(self.at), "ok": self.ok}


def _whole(array: np.ndarray, spec: TensorSpec) -> bool:
    return array.ndim == len(spec.shape) + 1


def _per_call(array: np.ndarray, spec: TensorSpec) -> int:
    """How many entries of the first axis one call takes."""
    first = 1 if _whole(array, spec) or not spec.shape else spec.shape[0]
    return max(1, first) if isinstance(first, int) else 1


def stack(calls: Sequence[Arrays]) -> dict[str, np.ndarray]:
    """The inputs of several calls, stacked along a new first axis.

    Raises:
        UsageError: calls of different shapes.
    """
    try:
        return {name: np.stack([_text(np.asarray(call[name])) for call in calls]) for name in calls[0]}
    except ValueError as error:
        raise UsageError("golden inputs have to be of one shape", hint="pad or cut the samples") from error


def count_rows(signature: Signature, inputs: Arrays) -> int:
    """How many calls the stacked `inputs` make.

    Raises:
        UsageError: names that are not the model's inputs, no samples, or not the same number for every input.
    """
    names = [spec.name for spec in signature.inputs]
    if sorted(names) != sorted(inputs):
        raise UsageError(
            f"the golden inputs are {_ticks(inputs)}, and the model's are {_ticks(names)}",
            hint="name the arrays as the model's inputs",
        )
    rows = {}
    for spec in signature.inputs:
        shape, step = inputs[spec.name].shape, _per_call(inputs[spec.name], spec)
        if not shape or not shape[0] or shape[0] % step:
            raise UsageError(
                f"the golden input `{spec.name}` has shape {_shape(shape)}: no whole number of calls of {step}",
                hint="the first axis holds the samples, at least one call's",
            )
        rows[spec.name] = shape[0] // step
    if len(set(rows.values())) > 1:
        listed = ", ".join(f"`{name}` {count}" for name, count in rows.items())
        raise UsageError(
            f"the golden inputs do not make the same number of calls: {listed}",
            hint="the first axis of each array holds the samples",
        )
    return next(iter(rows.values()), 1)


def feeds(signature: Signature, inputs: Arrays, row: int) -> dict[str, np.ndarray]:
    """The inputs of call number `row`."""
    found = {}
    for spec in signature.inputs:
        array = inputs[spec.name]
        step = _per_call(array, spec)
        part = np.asarray(array[row]) if _whole(array, spec) else array[row * step : (row + 1) * step]
        # Runtimes take strings as Python objects.
        found[spec.name] = part.astype(object) if spec.dtype == "string" else part
    return found


def default_tolerance(outputs: Arrays, exact: bool) -> dict[str, Tolerance]:
    """The tolerance where nobody states one, in units of each output's standard deviation.

    Runtimes of the same arithmetic stay within 3e-5 of it, reduced precision within 5 %: the gates are 1e-4 and 0.1.
    Integers, truth values and text must be equal.

    Args:
        outputs: the golden outputs.
        exact: whether the recipe keeps the model's own arithmetic.
    """
    found = {}
    for name, array in outputs.items():
        if array.dtype.kind not in "fc":
            found[name] = Tolerance(0.0, 0.0)
            continue
        values = array[np.isfinite(array)].astype(np.complex128 if array.dtype.kind == "c" else np.float64)
        scale = float(np.std(values)) if values.size > 1 else 0.0
        scale = scale or float(np.max(np.abs(values), initial=0.0)) or 1e-3
        found[name] = Tolerance(1e-5 if exact else 1e-2, float(f"{(1e-4 if exact else 0.1) * scale:.3g}"))
    return found


def compare(name: str, golden: np.ndarray, got: np.ndarray, tolerance: Tolerance) -> Difference:
    """The worst element of one output. A NaN on either side is as wrong as can be; equal infinities are right.

    Raises:
        VerificationFailed: another type or shape.
    """
    got = _text(got)
    if got.dtype.kind != golden.dtype.kind or (got.dtype != golden.dtype and golden.dtype.kind != "U"):
        raise _differs(f"output `{name}` has type {got.dtype}, and the golden one {golden.dtype}")
    if got.shape != golden.shape:
        raise _differs(f"output `{name}` has shape {_shape(got.shape)}, and the golden one {_shape(golden.shape)}")
    if golden.size == 0:
        return Difference(name, 0.0, tolerance.atol, (), True)
    if golden.dtype.kind in "fc":
        wide = np.complex128 if golden.dtype.kind == "c" else np.float64
        want, have = golden.astype(wide), got.astype(wide)
        with np.errstate(invalid="ignore", over="ignore"):
            error = np.where(want == have, 0.0, np.abs(have - want))
            allowed = tolerance.atol + tolerance.rtol * np.where(np.isfinite(want), np.abs(want), 0.0)
    elif golden.dtype.kind in "iu":
        # Differences of whole numbers are taken as floats: only their size beyond the tolerance matters.
        error = np.where(
            golden == got, 0.0, np.maximum(1.0, np.abs(got.astype(np.float64) - golden.astype(np.float64)))
        )
        allowed = tolerance.atol + tolerance.rtol * np.abs(golden.astype(np.float64))
    else:
        error, allowed = (golden != got).astype(np.float64), np.full(golden.shape, min(tolerance.atol, 0.5))
    error = np.where(np.isnan(error), np.inf, error)
    at = np.unravel_index(int(np.argmax(error - allowed)), golden.shape)
    ok = bool(np.all(error <= allowed))
    return Difference(name, float(error[at]), float(allowed[at]), tuple(int(i) for i in at), ok)


def join(outputs: Sequence[Arrays], signature: Signature) -> dict[str, np.ndarray]:
    """The outputs of several calls, joined along the first axis.

    Raises:
        VerificationFailed: an output is missing, or calls do not fit together.
    """
    joined = {}
    for spec in signature.outputs:
        if any(spec.name not in call for call in outputs):
            raise _differs(f"the model gave no output `{spec.name}`")
        pieces = [np.atleast_1d(_text(np.asarray(call[spec.name]))) for call in outputs]
        try:
            joined[spec.name] = np.concatenate(pieces)
        except ValueError as error:
            raise _differs(f"output `{spec.name}` has another shape from call to call") from error
    return joined


def dump(arrays: Arrays, what: str) -> bytes:
    """The arrays as the bytes of a `.npz`, the same bytes for the same arrays, never pickled.

    Raises:
        UsageError: an array of objects, a type that the format cannot name, NaN, or more than 256 MiB.
    """
    entries = []
    for name, array in sorted(arrays.items()):
        plain = np.ascontiguousarray(_text(np.asarray(array))).reshape(np.shape(array))
        if plain.dtype.kind not in "biufcU":
            raise UsageError(
                f"the {what} `{show(name)}` has type {plain.dtype}, which a bundle cannot hold",
                hint="give it as float32",
            )
        if plain.dtype.kind in "fc" and np.isnan(plain).any():
            raise UsageError(
                f"the {what} `{show(name)}` holds NaN, so nothing can be verified against it",
                hint="choose samples without NaN",
            )
        out = io.BytesIO()
        np.lib.format.write_array(out, plain.astype(plain.dtype.newbyteorder("<")), version=(1, 0), allow_pickle=False)
        entries.append((f"{name}.npy", out.getbuffer().nbytes, [out.getvalue()]))
    if sum(size for _, size, _ in entries) > MOST_GOLDEN:
        raise UsageError(f"the {what}s have more than {MOST_GOLDEN >> 20} MiB", hint="keep fewer samples")
    packed = io.BytesIO()
    write_zip(packed, entries)
    return packed.getvalue()


def parse(raw: bytes, file: str, specs: tuple[TensorSpec, ...]) -> dict[str, np.ndarray]:
    """Reads the bytes of a `.npz` of plain arrays, one for each of `specs`.

    Every header is compared with what it should say before an array is made, so that no header decides how much
    memory is taken.

    Raises:
        VerificationFailed: missing or unknown arrays, pickled ones, another type or shape, a damaged file.
    """
    archive = Archive(io.BytesIO(raw), file)
    expected = {f"{spec.name}.npy": spec for spec in specs}
    if archive.sizes.keys() != expected.keys():
        raise broken(f"`{file}` holds the arrays {_ticks(archive.sizes)}, expected {_ticks(expected)}")
    if sum(archive.sizes.values()) > MOST_GOLDEN:
        raise broken(f"`{file}` unpacks to more than {MOST_GOLDEN >> 20} MiB")
    return {
        spec.name: _array(b"".join(archive.chunks(member)), f"{file}: {show(member)}", spec)
        for member, spec in expected.items()
    }


def _array(raw: bytes, where: str, spec: TensorSpec) -> np.ndarray:
    dtype, fortran, shape, start = _header(raw, where)
    if dtype.hasobject or dtype.kind == "V":
        raise broken("an array is pickled, and a bundle holds no pickle", where)
    if dtype.kind != "U" if spec.dtype == "string" else str(dtype) != spec.dtype:
        raise broken(f"an array has type {dtype}, expected {spec.dtype}", where)
    if not _fits(shape, spec):
        raise broken(f"an array has shape {_shape(shape)}, expected {_shape(('samples', *spec.shape[1:]))}", where)
    if not math.prod(shape):
        raise broken(f"an array of shape {_shape(shape)} holds nothing", where)
    if math.prod(shape) * dtype.itemsize != len(raw) - start:
        raise broken(f"an array of shape {_shape(shape)} has the wrong number of bytes", where)
    return np.frombuffer(raw, dtype, offset=start).reshape(shape, order="F" if fortran else "C")


def _header(raw: bytes, where: str) -> tuple[np.dtype[Any], bool, tuple[int, ...], int]:
    """Element type, order, shape and start of the data.

    Read here, since NumPy's own reader evaluates the header, has fallbacks for old ones, and raises what it likes.
    """
    length = int.from_bytes(raw[8:10], "little")
    found = _HEADER.fullmatch(raw, 10, 10 + length)
    if not raw.startswith(b"\x93NUMPY\1\0") or found is None or len(raw) < 10 + length:
        raise broken("an array has no readable header", where)
    try:
        dtype = np.dtype(found[1].decode())
        shape = tuple(int(size) for size in found[3].removesuffix(b",").split(b",") if found[3])
    except (TypeError, ValueError) as error:
        raise broken("an array has no readable header", where) from error
    return dtype, found[2] == b"True", shape, 10 + length


def _fits(shape: tuple[int, ...], spec: TensorSpec) -> bool:
    """Whether a stacked array can hold `spec`; a spec without dimensions may be one of unknown shape."""
    if not spec.shape:
        return len(shape) >= 1
    dims = {len(spec.shape): spec.shape[1:], len(spec.shape) + 1: spec.shape}.get(len(shape))
    rest = zip(shape[1:], dims or (), strict=dims is not None)
    return dims is not None and all(isinstance(want, str) or got == want for got, want in rest)


def _text(array: np.ndarray) -> np.ndarray:
    """Arrays of Python strings as NumPy's own text, which needs no pickle."""
    if array.dtype.kind == "O" and all(isinstance(item, str) for item in array.flat):
        return array.astype(str)
    return array


def _differs(message: str) -> VerificationFailed:
    return VerificationFailed(message, hint="the runtime here is not the one the bundle was made with; pack it again")


def _shape(shape: tuple[Any, ...]) -> str:
    return "x".join(map(str, shape)) or "()"


def _ticks(names: Any) -> str:
    return ", ".join(f"`{show(name)}`" for name in sorted(names)) or "none"
