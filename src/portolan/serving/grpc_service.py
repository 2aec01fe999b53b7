"""What each method of the gRPC door does, once its caller was let in."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol

from portolan.serving import grpc_codec
from portolan.serving.calls import Answer, Call, Refusal
from portolan.serving.messages import HEALTH, INFERENCE, Messages


class Models(Protocol):
    """What the door needs of the models behind it."""

    def infer(self, call: Call) -> asyncio.Future[Answer]:
        """Answers a call."""

    def server(self) -> dict[str, Any]:
        """Name, version, extensions."""

    def live(self) -> bool:
        """Whether the process works."""

    def ready(self, model: str | None = None, version: str | None = None) -> bool:
        """Whether a model, or all of them, can be called."""

    def metadata(self, model: str, version: str | None = None) -> dict[str, Any]:
        """The protocol's model metadata."""

    def config(self, model: str, version: str | None = None) -> dict[str, Any]:
        """Triton's model configuration, as far as it is true here."""

    def statistics(self, model: str | None = None, version: str | None = None) -> dict[str, Any]:
        """Triton's statistics."""

    def index(self, ready_only: bool = False) -> list[dict[str, Any]]:
        """All models."""

    async def load(self, model: str, parameters: Mapping[str, Any]) -> None:
        """Loads or loads again."""

    async def unload(self, model: str) -> None:
        """Unloads."""


#: Takes the request and gRPC's context; gives the response.
Body = Callable[[Any, Any], Awaitable[Any]]


class Service:
    """The methods by name.

    Args:
        models: what answers.
        messages: the protocol's.
    """

    def __init__(self, models: Models, messages: Messages) -> None:
        self._models, self._messages = models, messages
        self.methods: Mapping[str, Body] = {
            "ServerLive": self._live,
            "ServerReady": self._ready,
            "ModelReady": self._model_ready,
            "ServerMetadata": self._server_metadata,
            "ModelMetadata": self._model_metadata,
            "ModelInfer": self._infer,
            "ModelConfig": self._config,
            "ModelStatistics": self._statistics,
            "RepositoryIndex": self._index,
            "RepositoryModelLoad": self._load,
            "RepositoryModelUnload": self._unload,
            "Check": self._check,
        }
        self._response = messages.classes["inference.ModelInferResponse"]

    async def infer_into(self, request: Any, context: Any, made: Any) -> Any:
        """Answers one ModelInferRequest into the ModelInferResponse `made`.

        Raises:
            Refusal: it gets no answer.
        """
        call = grpc_codec.call(request, context.time_remaining(), metadata(context, "traceparent"))
        return grpc_codec.response(await self._models.infer(call), made)

    async def _infer(self, request: Any, context: Any) -> Any:
        return await self.infer_into(request, context, self._response())

    async def _live(self, request: Any, context: Any) -> Any:
        return self._made("ServerLive", live=self._models.live())

    async def _ready(self, request: Any, context: Any) -> Any:
        return self._made("ServerReady", ready=self._models.ready())

    async def _model_ready(self, request: Any, context: Any) -> Any:
        return self._made("ModelReady", ready=self._models.ready(request.name, request.version or None))

    async def _server_metadata(self, request: Any, context: Any) -> Any:
        return self._parsed("ServerMetadata", self._models.server())

    async def _model_metadata(self, request: Any, context: Any) -> Any:
        return self._parsed("ModelMetadata", self._models.metadata(request.name, request.version or None))

    async def _config(self, request: Any, context: Any) -> Any:
        return self._parsed("ModelConfig", {"config": self._models.config(request.name, request.version or None)})

    async def _statistics(self, request: Any, context: Any) -> Any:
        found = self._models.statistics(request.name or None, request.version or None)
        return self._parsed("ModelStatistics", found)

    async def _index(self, request: Any, context: Any) -> Any:
        return self._parsed("RepositoryIndex", {"models": self._models.index(request.ready)})

    async def _load(self, request: Any, context: Any) -> Any:
        await self._models.load(request.model_name, grpc_codec.parameters(request.parameters))
        return self._made("RepositoryModelLoad")

    async def _unload(self, request: Any, context: Any) -> Any:
        await self._models.unload(request.model_name)
        return self._made("RepositoryModelUnload")

    async def _check(self, request: Any, context: Any) -> Any:
        """GRPC's health protocol: the whole server, by an empty name or a service's."""
        if request.service not in ("", INFERENCE, HEALTH):
            raise Refusal("not_found", f"no service named `{request.service}`")
        status = "SERVING" if self._models.ready() else "NOT_SERVING"
        return self._messages.classes["grpc.health.v1.HealthCheckResponse"](status=status)

    def _made(self, method: str, **fields: Any) -> Any:
        return self._messages.classes[f"inference.{method}Response"](**fields)

    def _parsed(self, method: str, data: dict[str, Any]) -> Any:
        """The response from the same plain data that the HTTP door sends as JSON."""
        from google.protobuf import json_format

        made, pool = self._made(method), self._messages.pool
        return json_format.ParseDict(data, made, ignore_unknown_fields=True, descriptor_pool=pool)


def metadata(context: Any, name: str) -> str | None:
    """One entry of what came along with a call."""
    for key, value in context.invocation_metadata() or ():
        if key == name:
            return value if isinstance(value, str) else bytes(value).decode(errors="replace")
    return None


def address(context: Any) -> str:
    """Where a call comes from, without the port."""
    kind, _, rest = str(context.peer()).partition(":")
    return rest.rpartition(":")[0] if kind in ("ipv4", "ipv6") else rest
