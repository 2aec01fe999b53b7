"""The Open Inference Protocol v2 over HTTP as bytes: requests for inference in JSON and binary, and their answers.

Binary tensors are views of the body; nothing is copied and nothing is allocated before sizes have been checked.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import msgspec

from portolan.serving import datatypes
from portolan.serving.calls import Answer, Call, Piece, Refusal, Tensor
from portolan.serving.checks import count
from portolan.serving.forms import Input, Request

_MOST_AXES, _MOST_EXTENT = 64, 2**40


_REQUEST = msgspec.json.Decoder(Request)
_ENCODER = msgspec.json.Encoder()


class Wish:
    """Which outputs the client wants as binary.

    Attributes:
        default: for outputs that are not named.
        named: by name.
        heads: the JSON parts of answers that were written for it, by what they say.
    """

    __slots__ = ("default", "heads", "named")

    def __init__(self, default: bool, named: Mapping[str, bool] | None = None) -> None:
        self.default = default
        self.heads: dict[Hashable, bytes] = {}
        self.named = named


def decode(model: str, version: str | None, body: Piece, header: int | None, place: int = -1) -> tuple[Call, Wish]:
    """A request for inference.

    Args:
        model: name, from the path.
        version: from the path.
        body: all of it, uncompressed.
        header: length of the JSON part, where binary tensors follow it; None where all is JSON.
        place: where the body lies in memory shared with the replicas; -1 where it does not.

    Raises:
        Refusal: `invalid`, with what is wrong.
    """
    view = memoryview(body)
    if header is not None and header > len(view):
        raise Refusal("invalid", f"the header length is {header:,} and the body has {len(view):,} bytes")
    try:
        request = _REQUEST.decode(view if header is None else view[:header])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Refusal("invalid", f"the request cannot be read: {error}") from error
    tensors, at = [], header if header is not None else len(view)
    for item in request.inputs:
        tensor, at = _tensor(item, view, at, place)
        tensors.append(tensor)
    if at != len(view):
        raise Refusal("invalid", f"{len(view) - at:,} bytes are left over after the tensors")
    call = Call(model, version, tensors, id=request.id)
    wish = _wish(request, call)
    if request.parameters:
        _read_parameters(request.parameters, call)
    return call, wish


def decode_raw(
    model: str, version: str | None, body: Piece, signs: Sequence[tuple[str, str, Sequence[int]]],
    place: int = -1,
) -> tuple[Call, Wish]:  # fmt: skip
    """A request whose header length is 0: the body is the only input's elements and nothing else.

    Args:
        model: name.
        version: version.
        body: the elements; of BYTES, one element without its length.
        signs: name, datatype and shape (-1: any) of the model's inputs.
        place: where the body lies in memory shared with the replicas; -1 where it does not.

    Raises:
        Refusal: `invalid`: several inputs, or a size that leaves the shape open.
    """
    if len(signs) != 1:
        raise Refusal("invalid", f"a raw body is for models with one input, and `{model}` has {len(signs)}")
    name, datatype, shape = signs[0]
    if datatype == "BYTES":
        data = len(body).to_bytes(4, "little") + bytes(body)
        return Call(model, version, [Tensor(name, datatype, tuple(1 for _ in shape), data)]), Wish(True)
    width, free = datatypes.SIZE[datatype], [i for i, extent in enumerate(shape) if extent < 0]
    rest = count([extent for extent in shape if extent >= 0]) * width
    if len(free) > 1 or (free and (not rest or len(body) % rest)) or (not free and rest != len(body)):
        raise Refusal("invalid", f"a raw body of {len(body):,} bytes does not fit shape {list(shape)} of {datatype}")
    whole = tuple(len(body) // rest if extent < 0 else extent for extent in shape)
    return Call(model, version, [Tensor(name, datatype, whole, body, place)]), Wish(True)


def encode(answer: Answer, wish: Wish) -> tuple[list[Piece], int | None]:
    """The body in pieces, and the length of its JSON part; None where all of it is JSON.

    Raises:
        Refusal: an output that JSON cannot write.
    """
    outputs, pieces = [], []
    for tensor in answer.outputs:
        binary = wish.default if wish.named is None else wish.named.get(tensor.name, wish.default)
        item: dict[str, Any] = {"name": tensor.name, "datatype": tensor.datatype, "shape": tensor.shape}
        if binary:
            item["parameters"] = {"binary_data_size": len(tensor.data)}
            pieces.append(tensor.data)
        else:
            item["data"] = _values(tensor)
        outputs.append(item)
    head: dict[str, Any] = {"model_name": answer.model, "model_version": answer.version, "outputs": outputs}
    if answer.id:
        head["id"] = answer.id
    raw = _ENCODER.encode(head)
    return [raw, *pieces], len(raw) if pieces else None


def plain(data: Any) -> bytes:
    """Plain data as JSON."""
    return _ENCODER.encode(data)


def read_plain(body: Piece) -> dict[str, Any]:
    """A JSON object; an empty body is an empty object.

    Raises:
        Refusal: `invalid`.
    """
    if not len(body):
        return {}
    try:
        return msgspec.json.decode(body, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Refusal("invalid", f"the request cannot be read: {error}") from error


def _tensor(item: Input, view: memoryview, at: int, place: int) -> tuple[Tensor, int]:
    shape = tuple(item.shape)
    if len(shape) > _MOST_AXES or any(extent < 0 or extent > _MOST_EXTENT for extent in shape):
        raise Refusal("invalid", f"input `{item.name}` has a shape that no tensor has")
    width = datatypes.SIZE.get(item.datatype)
    if width is None:
        raise Refusal("invalid", f"`{item.datatype}` of input `{item.name}` is no datatype")
    parameters = item.parameters
    if parameters is not None and parameters.shared_memory_region is not None:
        raise Refusal("invalid", f"input `{item.name}`: shared memory is not supported; send it in the body")
    size = None if parameters is None else parameters.binary_data_size
    if size is None:
        return _from_json(item, shape), at
    if item.data is not None:
        raise Refusal("invalid", f"input `{item.name}` has both `data` and `binary_data_size`")
    need = count(shape) * width
    if size < 0 or (width and size != need):
        raise Refusal("invalid", f"input `{item.name}` says {size:,} bytes; its shape and datatype need {need:,}")
    end = at + size
    if end > len(view):
        raise Refusal("invalid", f"input `{item.name}` says {size:,} bytes, and {len(view) - at:,} are left")
    return Tensor(item.name, item.datatype, shape, view[at:end], place + at if place >= 0 else -1), end


def _from_json(item: Input, shape: tuple[int, ...]) -> Tensor:
    if item.data is None:
        raise Refusal("invalid", f"input `{item.name}` has neither `data` nor `binary_data_size`")
    try:
        values = datatypes.flat(item.data, len(shape))
        if len(values) != count(shape):
            raise ValueError(f"{len(values):,} elements for shape {list(shape)}")
        return Tensor(item.name, item.datatype, shape, datatypes.encode(item.datatype, values))
    except ValueError as error:
        raise Refusal("invalid", f"the data of input `{item.name}` are not {item.datatype}: {error}") from error


def _wish(request: Request, call: Call) -> Wish:
    parameters = request.parameters
    default = False if parameters is None else parameters.get("binary_data_output", False)
    if not isinstance(default, bool):
        raise Refusal("invalid", "`binary_data_output` is true or false")
    if not request.outputs:
        return Wish(default)
    named = {}
    for item in request.outputs:
        call.outputs.append(item.name)
        wanted = item.parameters
        if wanted is None:
            continue
        if wanted.classification or wanted.shared_memory_region is not None:
            raise Refusal("invalid", f"output `{item.name}`: classification and shared memory are not supported")
        if wanted.binary_data is not None:
            named[item.name] = wanted.binary_data
    if len(set(call.outputs)) != len(call.outputs):
        raise Refusal("invalid", "an output is asked for twice")
    return Wish(default, named)


def _read_parameters(parameters: Mapping[str, Any], call: Call) -> None:
    """The parameters `timeout` (microseconds) and `priority`, checked; the others as they are."""
    call.parameters = parameters
    for key in ("timeout", "priority"):
        value = parameters.get(key, 0)
        if type(value) is str and value.isascii() and value.isdigit() and len(value) < 19:
            value = int(value)
        if type(value) is not int or value < 0:
            raise Refusal("invalid", f"`{key}` is a whole number from 0 up")
        if key == "timeout":
            call.timeout = value / 1e6 if value else None
        else:
            call.priority = min(value, 2**31)
    if any(parameters.get(f"sequence_{end}") for end in ("id", "start", "end")):
        raise Refusal("invalid", "sequences are not supported: the model keeps no state")


def _values(tensor: Tensor) -> list[Any]:
    try:
        return datatypes.decode(tensor.datatype, tensor.data)
    except ValueError as error:
        said = f"output `{tensor.name}` cannot be written as JSON ({error}); ask for binary data"
        raise Refusal("invalid", said) from error
