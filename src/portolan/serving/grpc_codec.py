"""Messages of the gRPC door as calls, and answers as messages. See messages/inference.proto."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from typing import Any

from portolan.serving.calls import Answer, Call, Refusal, Tensor
from portolan.serving.datatypes import encode

_FIELDS: Mapping[str, str] = {
    "BOOL": "bool_contents",
    **dict.fromkeys(("INT8", "INT16", "INT32"), "int_contents"),
    "INT64": "int64_contents",
    **dict.fromkeys(("UINT8", "UINT16", "UINT32"), "uint_contents"),
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}
_LENGTH = struct.Struct("<I")
#: What would change the meaning of a tensor, so that leaving it out would be a wrong answer.
_UNSUPPORTED = ("shared_memory_region", "classification", "sequence_id")


def call(request: Any, remaining: float | None = None, trace: str | None = None) -> Call:
    """A ModelInferRequest as a call.

    Args:
        request: the message.
        remaining: seconds until the client gives up.
        trace: its `traceparent`.

    Raises:
        Refusal: `invalid`.
    """
    given = parameters(request.parameters)
    timeout = _positive(given.pop("timeout", 0), "timeout") / 1e6 or None
    if remaining is not None:
        timeout = remaining if timeout is None else min(timeout, remaining)
    _supported(given, "$.parameters")
    for i, output in enumerate(request.outputs):
        _supported(output.parameters, f"$.outputs[{i}].parameters")
    return Call(
        request.model_name,
        request.model_version or None,
        _tensors(request),
        [output.name for output in request.outputs],
        request.id,
        timeout,
        _positive(given.pop("priority", 0), "priority"),
        given,
        trace,
    )


def response(answer: Answer, made: Any) -> Any:
    """Fills the ModelInferResponse `made`; tensors go as raw bytes."""
    made.model_name, made.model_version, made.id = answer.model, answer.version, answer.id
    for tensor in answer.outputs:
        made.outputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
        made.raw_output_contents.append(bytes(tensor.data))
    return made


def parameters(given: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters as plain values.

    Raises:
        Refusal: one without a value.
    """
    found = {}
    for name, value in given.items():
        kind = value.WhichOneof("parameter_choice")
        if kind is None:
            raise Refusal("invalid", f"the parameter `{name}` has no value")
        found[name] = getattr(value, kind)
    return found


def _tensors(request: Any) -> list[Tensor]:
    raw, inputs = request.raw_input_contents, request.inputs
    if not raw:
        return [_typed(tensor, f"$.inputs[{i}]") for i, tensor in enumerate(inputs)]
    if len(raw) != len(inputs):
        raise Refusal("invalid", f"$.raw_input_contents has {len(raw)} entries, $.inputs has {len(inputs)}")
    found = []
    for i, (tensor, data) in enumerate(zip(inputs, raw, strict=True)):
        if tensor.HasField("contents"):
            raise Refusal("invalid", f"$.inputs[{i}].contents stands beside $.raw_input_contents: send one of them")
        if tensor.parameters:
            _supported(tensor.parameters, f"$.inputs[{i}].parameters")
        found.append(Tensor(tensor.name, tensor.datatype, tuple(tensor.shape), data))
    return found


def _typed(tensor: Any, where: str) -> Tensor:
    _supported(tensor.parameters, f"{where}.parameters")
    field = _FIELDS.get(tensor.datatype)
    present = [found.name for found, _ in tensor.contents.ListFields()]
    if field is None:
        known = f"{where}.datatype is `{tensor.datatype}`, which can be sent in raw_input_contents only"
        raise Refusal("invalid", known)
    if present not in ([], [field]):
        raise Refusal("invalid", f"{where}.contents holds {', '.join(present)}; {tensor.datatype} goes into {field}")
    values = getattr(tensor.contents, field)
    try:
        data = _strings(values) if tensor.datatype == "BYTES" else encode(tensor.datatype, list(values))
    except ValueError as error:
        raise Refusal("invalid", f"{where}.contents.{field} is no {tensor.datatype}: {error}") from error
    return Tensor(tensor.name, tensor.datatype, tuple(tensor.shape), data)


def _strings(values: Iterable[bytes]) -> bytes:
    return b"".join(_LENGTH.pack(len(value)) + value for value in values)


def _supported(given: Mapping[str, Any], where: str) -> None:
    for name in _UNSUPPORTED:
        if name in given and _means(given[name]):
            raise Refusal("invalid", f"{where}.{name}: this server cannot do that")


def _means(value: Any) -> bool:
    """A sequence of 0 or an empty one is none, and clients send it."""
    if hasattr(value, "WhichOneof"):
        kind = value.WhichOneof("parameter_choice")
        value = getattr(value, kind) if kind else None
    return value not in (0, "", None, False)


def _positive(value: Any, name: str) -> int:
    """An integer that is not negative; tritonclient sends `timeout` and `priority` as integers."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise Refusal("invalid", f"$.parameters.{name} must be a whole number that is not negative")
    return value
