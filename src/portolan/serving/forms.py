"""What the JSON of a request for inference looks like. The rest of the protocol is compiled, which these cannot be."""

from __future__ import annotations

from typing import Any

import msgspec


class InputParameters(msgspec.Struct):
    """Of one input."""

    binary_data_size: int | None = None
    shared_memory_region: str | None = None


class Input(msgspec.Struct):
    """One input; its numbers are in `data`, or behind the JSON."""

    name: str
    shape: list[int]
    datatype: str
    parameters: InputParameters | None = None
    data: list[Any] | None = None


class OutputParameters(msgspec.Struct):
    """Of one output that is asked for."""

    binary_data: bool | None = None
    classification: int = 0
    shared_memory_region: str | None = None


class Output(msgspec.Struct):
    """One output that is asked for."""

    name: str
    parameters: OutputParameters | None = None


class Request(msgspec.Struct):
    """The whole request."""

    inputs: list[Input]
    id: str = ""
    parameters: dict[str, Any] | None = None
    outputs: list[Output] | None = None
