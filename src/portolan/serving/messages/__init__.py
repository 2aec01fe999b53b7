"""The messages of the gRPC door, as classes made from what `tools/make_messages.py` compiled.

They live in a pool of descriptors of their own: a process that also imports a client of the protocol, which registers
the same names in the shared pool, is no conflict. And there is no generated Python, so every protobuf runtime will do.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

COMPILED = "messages.binpb"
INFERENCE = "inference.GRPCInferenceService"
HEALTH = "grpc.health.v1.Health"


@dataclass(frozen=True)
class Method:
    """One method of a service.

    Attributes:
        name: in the service.
        request, response: message classes.
        streams: whether both sides send many messages.
    """

    name: str
    request: Any
    response: Any
    streams: bool


@dataclass(frozen=True)
class Messages:
    """All message classes by full name, all services by full name, and the pool they come from."""

    classes: Mapping[str, Any]
    services: Mapping[str, tuple[Method, ...]]
    pool: Any


def messages() -> Messages:
    """Reads the compiled protocol."""
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    listed = descriptor_pb2.FileDescriptorSet.FromString(files(__name__).joinpath(COMPILED).read_bytes())
    pool = descriptor_pool.DescriptorPool()
    for file in listed.file:
        pool.AddSerializedFile(file.SerializeToString())
    classes: dict[str, Any] = {}
    services = {}
    for file in listed.file:
        found = pool.FindFileByName(file.name)
        for message in found.message_types_by_name.values():
            classes[message.full_name] = message_factory.GetMessageClass(message)
        for service in found.services_by_name.values():
            services[service.full_name] = tuple(
                Method(m.name, classes[m.input_type.full_name], classes[m.output_type.full_name], m.client_streaming)
                for m in service.methods
            )
    return Messages(classes, services, pool)
