"""What passes between a front door (HTTP, gRPC) and the models behind it: calls, answers, refusals.

Tensors travel as raw bytes in the layout of the Open Inference Protocol's binary extension, so a front door copies
nothing and needs no NumPy. Everything here lives on the front's one event loop. Every request makes some of these, so
they are written out: a compiled module calls a dataclass's `__init__` through the interpreter.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
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


class Tensor:
    """A named array as bytes.

    Attributes:
        name: name of the input or output.
        datatype: the protocol's word for the element type, such as `FP32` or `BYTES`.
        shape: extents.
        data: the elements, little endian and row major; of `BYTES`, each after its length in four bytes.
        place: where `data` lies in the memory that the front shares with the replicas; -1 where it does not.
    """

    __slots__ = ("data", "datatype", "name", "place", "shape")

    def __init__(self, name: str, datatype: str, shape: tuple[int, ...], data: Piece, place: int = -1) -> None:
        self.name = name
        self.datatype = datatype
        self.shape = shape
        self.data = data
        self.place = place


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

    __slots__ = (
        "form", "id", "inputs", "model", "outputs", "parameters", "priority", "release", "timeout", "trace", "version",
    )  # fmt: skip

    def __init__(
        self,
        model: str,
        version: str | None,
        inputs: list[Tensor],
        outputs: list[str] | None = None,
        id: str = "",
        timeout: float | None = None,
        priority: int = 0,
        parameters: Mapping[str, Any] | None = None,
        form: object | None = None,
    ) -> None:
        self.model = model
        self.version = version
        self.inputs = inputs
        self.outputs = [] if outputs is None else outputs
        self.id = id
        self.timeout = timeout
        self.priority = priority
        self.parameters: Mapping[str, Any] = {} if parameters is None else parameters
        self.trace: str | None = None
        self.release: Callable[[], None] | None = None
        self.form = form


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

    __slots__ = ("form", "id", "model", "outputs", "version")

    def __init__(
        self, model: str, version: str, outputs: list[Tensor], id: str = "", form: object | None = None
    ) -> None:
        self.model = model
        self.version = version
        self.outputs = outputs
        self.id = id
        self.form = form


class Refusal(Exception):
    """A call that is not answered, and why.

    Args:
        kind: what is wrong, in one of the words above.
        message: for the client: what, and where.
        retry_after: seconds until it is worth asking again; None where it never is.
        form: the same object for refusals that say the same; None where that is not known.
    """

    def __init__(self, kind: Kind, message: str, retry_after: float | None = None, form: object | None = None) -> None:
        super().__init__(message)
        self.form = form
        self.kind: Kind = kind
        self.message = message
        self.retry_after = retry_after
