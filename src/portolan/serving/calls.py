"""What passes between a front door (HTTP, gRPC) and the models behind it: calls, answers, refusals.

Tensors travel as raw bytes in the layout of the Open Inference Protocol's binary extension, so a front door copies
nothing and needs no NumPy. Everything here lives on the front's one event loop.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

#: Bytes, wherever they lie.
Piece = bytes | bytearray | memoryview
#: Why a call gets no answer. Each door maps these to its own codes: see `HTTP` here and the table of the gRPC door.
Kind = Literal[
    "invalid", "unauthenticated", "not_found", "not_ready", "too_large", "too_many", "overloaded", "late", "failed"
]
HTTP: Mapping[Kind, int] = {
    "invalid": 400,
    "unauthenticated": 401,
    "not_found": 404,
    "not_ready": 400,
    "too_large": 413,
    "too_many": 429,
    "overloaded": 503,
    "late": 503,
    "failed": 500,
}


@dataclass(slots=True)
class Tensor:
    """A named array as bytes.

    Attributes:
        name: name of the input or output.
        datatype: the protocol's word for the element type, such as `FP32` or `BYTES`.
        shape: extents.
        data: the elements, little endian and row major; of `BYTES`, each after its length in four bytes.
        place: where `data` lies in the memory that the front shares with the replicas; -1 where it does not.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: Piece
    place: int = -1


@dataclass(slots=True)
class Call:
    """One request for inference.

    Attributes:
        model: name of the model.
        version: which version, or None for the one that serves.
        inputs: one tensor per input.
        outputs: names of the outputs asked for; empty for all.
        id: echoed in the answer.
        timeout: seconds from arrival after which nobody wants the answer; None for the model's own deadline.
        priority: 0 for the default; among equal deadlines the lower number is served first.
        parameters: what else came along, as the protocol's parameters.
        trace: the W3C `traceparent` that came along.
        release: called once when nothing of the inputs will be read again; for doors that lend shared memory.
        form: the same object for calls that a door knows to differ in nothing but the elements of tensors whose
            elements have one size; None where it does not know.
    """

    model: str
    version: str | None
    inputs: list[Tensor]
    outputs: list[str] = field(default_factory=list)
    id: str = ""
    timeout: float | None = None
    priority: int = 0
    parameters: Mapping[str, Any] = field(default_factory=dict)
    trace: str | None = None
    release: Callable[[], None] | None = None
    form: object | None = None


@dataclass(slots=True)
class Answer:
    """The outputs of one call.

    Attributes:
        model, version: what answered.
        outputs: in the order asked for. Their data may be read until whoever was told of the answer returns: then
            the memory is used again.
        id: of the call.
        form: the same object for answers that differ in nothing but their outputs' elements and the id; None where
            that is not known.
    """

    model: str
    version: str
    outputs: list[Tensor]
    id: str = ""
    form: object | None = None


class Refusal(Exception):
    """A call that is not answered, and why.

    Args:
        kind: what is wrong, in one of the words above.
        message: for the client: what, and where.
        retry_after: seconds until it is worth asking again; None where it never is.
    """

    def __init__(self, kind: Kind, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.kind: Kind = kind
        self.message = message
        self.retry_after = retry_after
