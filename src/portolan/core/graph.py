"""Reading ONNX files: what is not a good model is refused here, in one clear line, before any time is spent on it.

Weights are never loaded: the graph is parsed without its external data, and hashing streams the files.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import mmap
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from portolan.core import external, protos
from portolan.core.analysis import Analysis, analyse
from portolan.core.files import sha256
from portolan.core.model import Model
from portolan.core.signature import Dim, Signature, TensorSpec
from portolan.errors import ModelError, UnknownName, UnsupportedOperator, UsageError

if TYPE_CHECKING:
    import onnx

__all__ = ["Analysis", "analyse", "fingerprint", "freeze_shapes", "load_model", "read"]

#: Operators outside the standard that ONNX Runtime documents and exporters write; a backend without them says so.
_KNOWN_DOMAINS = ("com.microsoft", "com.microsoft.experimental", "com.microsoft.nchwc", "com.ms.internal.nhwc")


class NoTensor(ModelError):
    """An input or output that is a sequence, an optional or a map."""


def load_model(path: Path, *, name: str | None = None, format: str = "onnx") -> Model:
    """Reads and checks an ONNX file.

    Args:
        path: the file; external data lies beside it.
        name: what people call the model; the file's stem without one.
        format: what the model came from.

    Raises:
        UsageError: there is no such file.
        NoTensor: an input or output is no tensor; the front end of ONNX files makes tensors of sequences.
        ModelError: not an ONNX file, damaged, invalid, or its external data is missing or unsafe.
        UnsupportedOperator: an operator that ONNX does not define and the file gives no body for.
    """
    path = Path(path)
    proto, data = _parse(path)
    _check_versions(proto, path)
    _check_operators(proto, path)
    locations = external.files(proto, path)
    whole = _with_output_shapes(proto)
    signature = _signature(whole, path)
    if whole is proto:
        _check_graph(proto, str(path) if locations else data, path)
    elif not locations:  # from memory the checker looks for external data in the current folder
        _check_graph(proto, whole.SerializeToString(), path)
    return Model(
        name=name or path.stem,
        path=path.absolute(),
        sha256=external.digest(hashlib.sha256(data).hexdigest(), path, locations),
        signature=signature,
        format=format,
        opset=next((o.version for o in proto.opset_import if protos.domain(o.domain) == ""), 0),
        operators=protos.operators(proto),
    )


def fingerprint(path: Path) -> str:
    """The `sha256` that `load_model` would give, cheaply: the graph is parsed only if it may name external data.

    Raises:
        UsageError: there is no such file.
        ModelError: the file or its external data cannot be read.
    """
    path = Path(path)
    _check_file(path)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        # Every external tensor has an entry with this key, so without it there is no external data.
        if data.find(b"location") < 0:
            return sha256(path)
    proto, content = _parse(path)
    return external.digest(hashlib.sha256(content).hexdigest(), path, external.files(proto, path))


def read(path: Path) -> onnx.ModelProto:
    """The graph at `path` without its external data, unchecked but for being an ONNX file."""
    return _parse(Path(path))[0]


def _check_file(path: Path) -> None:
    if not path.exists():
        near = difflib.get_close_matches(path.name, _neighbours(path.parent), n=1, cutoff=0.5)
        hint = f"did you mean `{path.parent / near[0]}`?" if near else "give the path of an `.onnx` file"
        raise UsageError(f"there is no file `{path}`", hint=hint)
    if path.is_dir():
        found = sorted(path.glob("*.onnx"))
        hint = f"give the file in it: `{found[0]}`" if found else "give the path of an `.onnx` file"
        raise ModelError(f"`{path}` is a folder, not an ONNX file", hint=hint)
    if not path.is_file():
        raise ModelError(f"`{path}` is not a regular file", hint="give the path of an `.onnx` file")
    if path.stat().st_size == 0:
        raise ModelError(f"`{path}` is empty", hint="copy or export the model again")


def _neighbours(folder: Path) -> list[str]:
    return [p.name for p in folder.iterdir() if p.suffix == ".onnx"] if folder.is_dir() else []


def _parse(path: Path) -> tuple[onnx.ModelProto, bytes]:
    import onnx

    _check_file(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ModelError(f"`{path}` cannot be read: {error.strerror}", hint="check its permissions") from error
    try:
        model = onnx.ModelProto.FromString(data)
    except Exception:  # protobuf's DecodeError, whose module has no types
        raise _unreadable(path, data) from None
    if model.ir_version == 0 or not model.HasField("graph"):  # protobuf accepts much that is no model
        raise _unreadable(path, data)
    return model, data


def _unreadable(path: Path, data: bytes) -> ModelError:
    if data.startswith(b"version https://git-lfs"):
        return ModelError(f"`{path}` is a Git LFS pointer, not the model", hint="fetch the file: `git lfs pull`")
    if _cut_short(data):
        return ModelError(
            f"`{path}` is truncated: it ends in the middle of the graph",
            hint="the download or copy did not finish: get the file again",
        )
    return ModelError(
        f"`{path}` is not an ONNX file", hint="export the model to ONNX first, for example with `torch.onnx.export`"
    )


def _cut_short(data: bytes) -> bool:
    """Whether `data` begins as a ModelProto does and one of its top-level fields ends behind the end of the file."""
    place, first = 0, True
    while place < len(data):
        tag, place = _varint(data, place)
        field, wire = tag >> 3, tag & 7
        if first and (field, wire) != (1, 0):  # exporters write ir_version first
            return False
        first = False
        value, place = _varint(data, place) if wire in (0, 2) else (0, place)
        if place > len(data) or (wire == 2 and place + value > len(data)):
            return field <= 25
        if wire not in (0, 2):
            return False
        place += value if wire == 2 else 0
    return False


def _varint(data: bytes, place: int) -> tuple[int, int]:
    """The number at `place` and the place behind it, which lies behind the end if the number is cut short."""
    value = shift = 0
    while place < len(data) and shift < 70:
        byte = data[place]
        value |= (byte & 0x7F) << shift
        place, shift = place + 1, shift + 7
        if byte < 0x80:
            return value, place
    return value, len(data) + 1


def _check_versions(model: onnx.ModelProto, path: Path) -> None:
    import onnx

    known = onnx.defs.onnx_opset_version()
    opset = max((o.version for o in model.opset_import if protos.domain(o.domain) == ""), default=0)
    if opset > known or model.ir_version > onnx.IR_VERSION:
        newer = f"opset {opset}" if opset > known else f"IR version {model.ir_version}"
        limit = known if opset > known else onnx.IR_VERSION
        raise ModelError(
            f"`{path}` uses {newer}, the installed `onnx` {onnx.__version__} knows up to {limit}",
            hint="upgrade it with `pip install -U onnx`, or export the model with `opset_version=18`",
        )


def _check_operators(model: onnx.ModelProto, path: Path) -> None:
    import onnx

    functions = {(protos.domain(f.domain), f.name) for f in model.functions}
    for opsets, nodes in protos.bodies(model):
        for node in nodes:
            domain = protos.domain(node.domain)
            if (domain, node.op_type) in functions or domain in _KNOWN_DOMAINS:
                continue
            where = f"node `{node.name or (node.output[0] if node.output else '?')}` of {path.name}"
            if domain not in protos.STANDARD:
                raise UnsupportedOperator(
                    f"the operator `{node.op_type}` of domain `{domain}` is not known, and the file has no body for it",
                    hint="export the model with the operator as an ONNX function, or with standard operators only",
                    where=where,
                )
            version = opsets.get(domain, 1)
            try:
                onnx.defs.get_schema(node.op_type, version, domain)
            except onnx.defs.SchemaError:
                raise _unknown_operator(node.op_type, domain, version, where) from None


def _unknown_operator(operator: str, domain: str, version: int, where: str) -> UnsupportedOperator:
    import onnx

    schemas = [s for s in onnx.defs.get_all_schemas_with_history() if s.domain == domain]
    label = f"{domain} {version}" if domain else f"opset {version}"
    since = min((s.since_version for s in schemas if s.name == operator), default=None)
    if since is not None and since > version:
        hint = f"`{operator}` exists from version {since} on: export the model with `opset_version={since}`"
    else:
        near = difflib.get_close_matches(operator, {s.name for s in schemas}, n=1, cutoff=0.6)
        hint = f"did you mean `{near[0]}`?" if near else "export the model with standard operators only"
    return UnsupportedOperator(f"ONNX {label} has no operator `{operator}`", hint=hint, where=where)


def _check_graph(model: onnx.ModelProto, source: bytes | str, path: Path) -> None:
    """Runs ONNX's checker on the serialized model, which is a hundred times faster than on the proto."""
    import onnx

    hint = "the graph is wrong inside: export the model again, or report it to its exporter"
    try:
        onnx.checker.check_model(source)
    except Exception as error:  # the checker throws whatever its C++ code throws
        reason = str(error).split("==>")[0].strip().splitlines()
        line = reason[0].strip().rstrip(".:") if reason else type(error).__name__
        raise ModelError(f"`{path}` is not a valid ONNX graph: {line}", hint=hint) from None
    if not model.graph.output:
        raise ModelError(f"`{path}` is not a valid ONNX graph: it has no outputs", hint=hint)


def _with_output_shapes(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model itself, or where an output has no shape, which runtimes accept and the checker does not, one with."""
    if all(value.type.tensor_type.HasField("shape") for value in model.graph.output):
        return model
    return _inferred(model)


def _signature(model: onnx.ModelProto, path: Path) -> Signature:
    stored = {t.name for t in model.graph.initializer} | {s.values.name for s in model.graph.sparse_initializer}
    return Signature(
        inputs=tuple(_spec(value, "input", path) for value in model.graph.input if value.name not in stored),
        outputs=tuple(_spec(value, "output", path) for value in model.graph.output),
    )


def _inferred(model: onnx.ModelProto) -> onnx.ModelProto:
    import onnx

    return onnx.shape_inference.infer_shapes(model, data_prop=True)


def _spec(value: onnx.ValueInfoProto, side: str, path: Path) -> TensorSpec:
    kind = value.type.WhichOneof("value")
    if kind != "tensor_type":
        what = (kind or "value without a type").removesuffix("_type").replace("_", " ")
        raise NoTensor(
            f"the {side} `{value.name}` of `{path}` is a {what}; only tensors can be fed and read",
            hint="scikit-learn classifiers: convert with `options={'zipmap': False}`" if side == "output" else None,
        )
    tensor = value.type.tensor_type
    if not tensor.HasField("shape"):
        raise ModelError(
            f"the {side} `{value.name}` of `{path}` has no rank",
            hint="export the model with the number of dimensions known; sizes may stay free",
        )
    shape: list[Dim] = []
    for axis, dim in enumerate(tensor.shape.dim):
        # Exporters mark a free size in three ways: a name, nothing, or a size of -1 or 0.
        shape.append(dim.dim_value if dim.dim_value > 0 else dim.dim_param or f"{value.name}_{axis}")
    return TensorSpec(value.name, protos.element_type(tensor.elem_type), tuple(shape))


def sizes(signature: Signature, shapes: Mapping[str, Sequence[Dim]]) -> dict[str, int]:
    """The size of each free dimension that `shapes` fixes; a name in place of a size leaves a dimension free.

    Raises:
        UnknownName: a shape for an input that does not exist.
        UsageError: another rank, another size than the model's own, or two sizes for one dimension.
    """
    specs = {spec.name: spec for spec in signature.inputs}
    found: dict[str, int] = {}
    for name, shape in shapes.items():
        if name not in specs:
            raise UnknownName("input", name, specs)
        spec = specs[name]
        wanted, text = "x".join(map(str, spec.shape)), "x".join(map(str, shape))
        if len(shape) != len(spec.shape):
            raise UsageError(f"the shape {text} does not fit the input `{name}`", hint=f"its shape is {wanted}")
        for dim, size in zip(spec.shape, shape, strict=True):
            if isinstance(size, str):
                continue
            if size < 1 or (isinstance(dim, int) and dim != size):
                raise UsageError(f"the shape {text} does not fit the input `{name}`", hint=f"its shape is {wanted}")
            if isinstance(dim, str) and found.setdefault(dim, size) != size:
                raise UsageError(
                    f"the dimension `{dim}` cannot be both {found[dim]} and {size}",
                    hint=f"every input with `{dim}` in its shape needs the same size there",
                )
    return found


def set_sizes(model: onnx.ModelProto, given: Mapping[str, int]) -> onnx.ModelProto:
    """A copy of the graph with free dimensions fixed, and the shapes behind them inferred again."""
    import onnx

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for value in (*copy.graph.input, *copy.graph.output, *copy.graph.value_info):
        for axis, dim in enumerate(value.type.tensor_type.shape.dim):
            key = dim.dim_param or f"{value.name}_{axis}"
            if dim.dim_value <= 0 and key in given:
                dim.dim_value = given[key]
    return _inferred(copy)


def freeze_shapes(model: Model, shapes: Mapping[str, Sequence[Dim]], out: Path) -> Model:
    """The model with the sizes that `shapes` gives fixed, written to `out/NAME.onnx`; the model itself if none is free.

    Args:
        model: any model.
        shapes: a shape per input, such as `{"x": (1, 3, 224, 224)}`; a name in place of a size leaves it free.
        out: a folder for the new file and, where there is external data, links to it or copies of it.

    Raises:
        UnknownName: a shape for an input that does not exist.
        UsageError: a shape that does not fit.
    """
    given = sizes(model.signature, shapes)
    if not given:
        return model
    proto = read(model.path)
    locations = external.files(proto, model.path)
    out.mkdir(parents=True, exist_ok=True)
    target = out / f"{model.name}.onnx"
    if target.resolve() == model.path.resolve():
        raise UsageError(f"`{target}` is the model itself", hint="give another folder for the derived files")
    for location in locations:
        copy = out / location
        copy.parent.mkdir(parents=True, exist_ok=True)
        if not copy.exists() or not copy.samefile(model.path.parent / location):
            shutil.copyfile(external.inside(model.path, location), copy)
    partial = target.with_suffix(".partial")
    partial.write_bytes(set_sizes(proto, given).SerializeToString())
    partial.replace(target)
    frozen = load_model(target, name=model.name, format=model.format)
    return dataclasses.replace(frozen, features=model.features, program=model.program)
