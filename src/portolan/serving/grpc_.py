"""The gRPC door: the Open Inference Protocol's service with Triton's extensions, on the front's loop.

For compatibility: in Python a call costs several times the CPU of the HTTP door with binary tensors.
"""

from __future__ import annotations

import asyncio
import time
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from portolan.serving.calls import Kind, Refusal
from portolan.serving.grpc_service import Body, Models, Service, address, metadata
from portolan.serving.guard import Guard
from portolan.serving.journal import Journal
from portolan.serving.messages import Method, messages

if TYPE_CHECKING:
    from portolan.serving.tls import Tls

#: The codes of gRPC by the words of a refusal.
CODES: Mapping[Kind, str] = {
    "invalid": "INVALID_ARGUMENT",
    "unauthenticated": "UNAUTHENTICATED",
    "not_found": "NOT_FOUND",
    "not_ready": "UNAVAILABLE",
    "too_large": "RESOURCE_EXHAUSTED",
    "too_many": "RESOURCE_EXHAUSTED",
    "overloaded": "UNAVAILABLE",
    "late": "UNAVAILABLE",
    "failed": "INTERNAL",
}
#: Requests of one stream that are being answered at once; further ones wait in the client.
_STREAM_WINDOW = 64
#: Bytes of a message beside its tensors.
_HEADROOM = 1 << 20
#: Whoever asks whether the server lives is a probe, which holds no token.
_OPEN = frozenset({"ServerLive", "ServerReady", "Check"})
#: Seconds: how long calls are still answered and then refused while closing; and quiet turns.
_STILL_ANSWERED, _STILL_REFUSED, _TURN, _QUIET_TURNS = 5.0, 1.0, 0.01, 10
_FAILED = "the server failed; its log says why"
Window = asyncio.Queue[asyncio.Task[Any] | None]


@dataclass(frozen=True)
class Settings:
    """Of the door.

    Attributes:
        host, port: where it listens; port 0 for any.
        message: bytes of the largest message it takes, tensors included.
        calls: how many it answers at once.
        tls: None for plain text.
    """

    host: str = "127.0.0.1"
    port: int = 8001
    message: int = 64 * 2**20
    calls: int = 4096
    tls: Tls | None = None


class Door:
    """A gRPC server in front of models.

    Args:
        models: what answers.
        settings: where and how.
        guard: who may come in.
        journal: told of every request, where it wants to be, and of what should not happen.
    """

    def __init__(self, models: Models, settings: Settings, guard: Guard, journal: Journal) -> None:
        import grpc

        self._settings, self._guard, self._journal = settings, guard, journal
        self._codes = {kind: getattr(grpc.StatusCode, name) for kind, name in CODES.items()}
        self._expired = grpc.StatusCode.DEADLINE_EXCEEDED
        self._grpc = grpc
        self._messages = messages()
        self._service = Service(models, self._messages)
        self._server: Any = None
        self._closing = False
        self._inside = 0
        self._came = 0

    async def start(self) -> int:
        """Listens; the port.

        Raises:
            OSError: the port is taken.
        """
        grpc, settings = self._grpc, self._settings
        options = [
            ("grpc.max_receive_message_length", settings.message + _HEADROOM),
            ("grpc.max_send_message_length", -1),
            ("grpc.max_metadata_size", 16 << 10),
            ("grpc.so_reuseport", 0),  # else two servers on one port would share its calls without a word
            # A client that pings more often is broken; one that says nothing for a while is looked after.
            ("grpc.keepalive_time_ms", 60_000),
            ("grpc.keepalive_timeout_ms", 20_000),
            ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
        ]
        server = grpc.aio.server(options=options, maximum_concurrent_rpcs=settings.calls)
        for name, methods in self._messages.services.items():
            handlers = {method.name: self._handler(method) for method in methods}
            server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(name, handlers),))
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        place = f"{host}:{settings.port}"
        try:
            if settings.tls is None:
                port = server.add_insecure_port(place)
            else:
                port = server.add_secure_port(place, settings.tls.credentials())
        except RuntimeError as error:
            raise OSError(f"gRPC cannot listen on {place}") from error
        await server.start()
        self._server = server
        return int(port)

    async def stop(self, grace: float) -> None:
        """Takes no more calls; returns when those that came are answered, or after `grace` seconds.

        gRPC drops the calls that it has read and not yet handed over. So calls are answered until none has come for a
        moment; a client that goes on sending is told to go elsewhere; and only then the server is shut.
        """
        if self._server is None:
            return
        begin = time.monotonic()
        await self._quiet(min(_STILL_ANSWERED, grace / 3))
        self._closing = True
        await self._quiet(min(_STILL_REFUSED, grace / 3))
        await self._server.stop(max(begin + grace - time.monotonic(), 0))

    async def _quiet(self, seconds: float) -> None:
        """Until nothing is inside and nothing has come for a moment, for so long at most.

        The moment is counted in turns of the loop, since one turn may take long when there is much to do.
        """
        end, seen, turns = time.monotonic() + seconds, -1, 0
        while turns < _QUIET_TURNS and time.monotonic() < end:
            await asyncio.sleep(_TURN)
            turns = turns + 1 if self._came == seen and not self._inside else 0
            seen = self._came

    def _handler(self, method: Method) -> Any:
        read, write = method.request.FromString, method.response.SerializeToString
        if method.streams:
            return self._grpc.stream_stream_rpc_method_handler(self._stream(method), read, write)
        body = self._service.methods[method.name]
        return self._grpc.unary_unary_rpc_method_handler(self._unary(method, body), read, write)

    def _unary(self, method: Method, body: Body) -> Callable[[Any, Any], Awaitable[Any]]:
        public = method.name in _OPEN

        async def answer(request: Any, context: Any) -> Any:
            begin = time.monotonic()
            try:
                if not public:
                    self._enter(context)
                try:
                    found = await body(request, context)
                finally:
                    if not public:
                        self._leave()
            except Refusal as refusal:
                code, trailing = self._status(refusal, context)
                self._note(method, request, context, code.name, begin, refusal.message)
                await context.abort(code, refusal.message, trailing)
            except asyncio.CancelledError:
                self._note(method, request, context, "CANCELLED", begin, "the client gave up")
                raise
            except Exception as error:
                self._bug(method, error)
                self._note(method, request, context, "INTERNAL", begin, _FAILED)
                await context.abort(self._grpc.StatusCode.INTERNAL, _FAILED)
            self._note(method, request, context, "OK", begin, None)
            return found

        return answer

    def _stream(self, method: Method) -> Callable[[AsyncIterator[Any], Any], AsyncIterator[Any]]:
        """Answers come in the order of the requests; a refusal is an answer too, so the stream goes on."""

        async def answers(requests: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:
            window: Window = asyncio.Queue(_STREAM_WINDOW)
            reader = None
            try:
                self._guard.check(metadata(context, "authorization"))
                reader = asyncio.create_task(self._read(requests, context, window, method))
                while (task := await window.get()) is not None:
                    yield await task
                await reader
            except Refusal as refusal:
                code, trailing = self._status(refusal, context)
                await context.abort(code, refusal.message, trailing)
            finally:
                if reader is not None:
                    reader.cancel()
                while not window.empty():
                    if (left := window.get_nowait()) is not None:
                        left.cancel()

        return answers

    async def _read(self, requests: AsyncIterator[Any], context: Any, window: Window, method: Method) -> None:
        broken = None
        try:
            async for request in requests:
                await window.put(asyncio.create_task(self._streamed(request, context, method)))
        except Exception as error:  # the client broke off; what it sent before is answered as far as it listens
            broken = error
        await window.put(None)
        if broken is not None:
            raise broken

    async def _streamed(self, request: Any, context: Any, method: Method) -> Any:
        begin, made = time.monotonic(), method.response()
        code, error = "OK", None
        try:
            self._enter(context)
            try:
                await self._service.infer_into(request, context, made.infer_response)
            finally:
                self._leave()
        except Refusal as refusal:
            code, error = self._codes[refusal.kind].name, refusal.message
        except Exception as wrong:
            code, error = "INTERNAL", _FAILED
            self._bug(method, wrong)
        if error is not None:
            made = method.response(error_message=error)
            made.infer_response.id = request.id
        self._note(method, request, context, code, begin, error)
        return made

    def _bug(self, method: Method, error: Exception) -> None:
        trace = "".join(traceback.format_exception(error)[-8:])
        self._journal.event(
            "bug", door="grpc", method=method.name, error=f"{type(error).__name__}: {error}", trace=trace
        )

    def _enter(self, context: Any) -> None:
        guard = self._guard
        self._came += 1
        if self._closing:
            raise Refusal("overloaded", "the server is stopping", 1.0)
        if guard.tokens is None and guard.rate is None:
            guard.enter(None, "")
        else:
            guard.enter(metadata(context, "authorization"), address(context))
        self._inside += 1

    def _leave(self) -> None:
        self._inside -= 1
        self._guard.leave()

    def _status(self, refusal: Refusal, context: Any) -> tuple[Any, tuple[tuple[str, str], ...]]:
        """The code and trailing metadata; a deadline that was the call's own has a code of its own."""
        code = self._codes[refusal.kind]
        if refusal.kind == "late" and context.time_remaining() is not None:
            code = self._expired
        if refusal.retry_after is None:
            return code, ()
        return code, (("grpc-retry-pushback-ms", str(int(refusal.retry_after * 1000))),)

    def _note(self, method: Method, request: Any, context: Any, code: str, begin: float, error: str | None) -> None:
        if not self._journal.wants_access:
            return
        self._journal.access(
            door="grpc",
            method=method.name,
            model=getattr(request, "model_name", "") or getattr(request, "name", "") or None,
            id=getattr(request, "id", "") or None,
            status=code,
            seconds=round(time.monotonic() - begin, 6),
            client=address(context),
            error=error,
        )
