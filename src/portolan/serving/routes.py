"""The paths of the Open Inference Protocol v2 and of Triton's extensions, over HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Final
from urllib.parse import unquote_to_bytes

from portolan.serving import bounds, protocol, responses
from portolan.serving.calls import Answer, Refusal
from portolan.serving.codec import Codec
from portolan.serving.models import Models
from portolan.serving.request import Request
from portolan.serving.responses import BINARY, JSON, Response

#: What a path may ask of a model, and by which method.
_MODEL = {"": b"GET", "ready": b"GET", "infer": b"POST", "config": b"GET", "stats": b"GET"}
_REPOSITORY = {"load", "unload"}
_REMEMBERED: Final = 64
Handler = Callable[[Request], None]


class Routes:
    """Answers requests from `models`.

    Args:
        models: what is served.
        control: whether clients may load and unload models.

    Attributes:
        pages: further paths that are answered as they are, such as metrics: a function that gives the content type
            and the body.
    """

    def __init__(self, models: Models, *, control: bool = True) -> None:
        self.models = models
        self.control = control
        self.pages: dict[str, Callable[[], tuple[str, bytes]]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._codec = Codec()
        self._refusals: dict[object, Response] = {}

    def __call__(self, request: Request) -> None:
        """Answers `request`, now or later.

        Raises:
            Refusal: it cannot be answered.
        """
        head = request.head
        if head.handler is None:
            found = self._find(request)
            if isinstance(found, Response):
                request.answer(found)
                return
            head.handler = found
        head.handler(request)

    def _find(self, request: Request) -> Handler | Response:
        path = request.head.path.partition(b"?")[0]
        page = self.pages.get(path.decode("latin-1"))
        if page is not None:
            return self._page(page) if request.head.method == b"GET" else _not_allowed(b"GET")
        parts = [_text(part) for part in path.strip(b"/").split(b"/")]
        match parts:
            case ["v2"]:
                allowed, handler = b"GET", self._told(lambda: self.models.server())
            case ["v2", "health", "live"]:
                allowed, handler = b"GET", self._health(self.models.live)
            case ["v2", "health", "ready"]:
                allowed, handler = b"GET", self._health(self.models.ready)
            case ["v2", "models", "stats"]:
                allowed, handler = b"GET", self._told(lambda: self.models.statistics())
            case ["v2", "repository", "index"]:
                allowed, handler = b"POST", self._index
            case ["v2", "repository", "models", model, verb] if verb in _REPOSITORY:
                allowed, handler = b"POST", self._repository(model, verb)
            case ["v2", "models", model, *rest]:
                return self._model(model, rest, request.head.method)
            case _:
                raise Refusal("not_found", f"there is nothing at `{path.decode('latin-1')[:200]}`")
        return handler if request.head.method == allowed else _not_allowed(allowed)

    def _model(self, model: str, rest: list[str], method: bytes) -> Handler | Response:
        version = None
        if len(rest) >= 2 and rest[0] == "versions":
            version, rest = rest[1], rest[2:]
        verb = rest[0] if rest else ""
        if len(rest) > 1 or verb not in _MODEL:
            raise Refusal("not_found", f"a model has nothing called `{'/'.join(rest)[:200]}`")
        if method != _MODEL[verb]:
            return _not_allowed(_MODEL[verb])
        models = self.models
        match verb:
            case "infer":
                return self._infer(model, version)
            case "ready":
                return self._health(lambda: models.ready(model, version))
            case "config":
                return self._told(lambda: models.config(model, version))
            case "stats":
                return self._told(lambda: models.statistics(model, version))
            case _:
                return self._told(lambda: models.metadata(model, version))

    def _infer(self, model: str, version: str | None) -> Handler:
        models, codec = self.models, self._codec
        arena = models.arena

        def handle(request: Request) -> None:
            head = request.head
            headers = head.headers
            if not head.json and b"inference-header-content-length" in headers:
                told = models.metadata(model, version)["inputs"]
                signs = [(item["name"], item["datatype"], item["shape"]) for item in told]
                call, wish = protocol.decode_raw(model, version, request.body, signs, request.place)
            else:
                call, wish = codec.decode(model, version, request.body, head.json or None, request.place)
            if b"traceparent" in headers:
                call.trace = headers[b"traceparent"].decode("latin-1")

            def done(result: Answer | Refusal) -> None:
                if isinstance(result, Refusal):
                    request.answer(self._refused(result))
                    return
                try:
                    pieces, length = codec.encode(result, wish)
                except Refusal as refusal:
                    request.answer(responses.error(refusal))
                    return
                response = Response(200, pieces, JSON if length is None else BINARY, json=length)
                if b"accept-encoding" in headers:
                    _compress(response, headers[b"accept-encoding"])
                request.answer(response)

            found, ticket = models.submit(call, done)
            if ticket.done is None:  # refused at once
                return
            if request.place >= 0:
                call.release = request.lend(arena)
            request.cancel = lambda: found.cancel(ticket)

        return handle

    def _refused(self, refusal: Refusal) -> Response:
        """The answer that says so, made once for all that say the same."""
        if refusal.form is None:
            return responses.error(refusal)
        found = self._refusals.get(refusal.form)
        if found is None:
            found = responses.error(refusal)
            found.whole = b"".join(responses.raw(found, close=False))
            if len(self._refusals) >= _REMEMBERED:
                self._refusals.clear()
            self._refusals[refusal.form] = found
        return found

    def _told(self, data: Callable[[], dict[str, Any]]) -> Handler:
        def handle(request: Request) -> None:
            response = responses.json(data())
            if b"accept-encoding" in request.head.headers:
                _compress(response, request.head.headers[b"accept-encoding"])
            request.answer(response)

        return handle

    def _health(self, good: Callable[[], bool]) -> Handler:
        def handle(request: Request) -> None:
            if good():
                request.answer(Response(200))
            else:
                request.answer(responses.error(Refusal("not_ready", "not ready")))

        return handle

    def _page(self, page: Callable[[], tuple[str, bytes]]) -> Handler:
        def handle(request: Request) -> None:
            kind, body = page()
            request.answer(Response(200, [body], f"Content-Type: {kind}\r\n".encode()))

        return handle

    def _index(self, request: Request) -> None:
        asked = protocol.read_plain(request.body)
        ready = asked.get("ready", False)
        if not isinstance(ready, bool):
            raise Refusal("invalid", "`ready` is true or false")
        request.answer(responses.json(self.models.index(ready)))

    def _repository(self, model: str, verb: str) -> Handler:
        async def work(request: Request, parameters: dict[str, Any]) -> None:
            try:
                if verb == "load":
                    await self.models.load(model, parameters)
                else:
                    await self.models.unload(model)
            except Refusal as refusal:
                request.answer(responses.error(refusal))
            else:
                request.answer(Response(200))

        def handle(request: Request) -> None:
            if not self.control:
                said = "clients may not load or unload models here; `--model-control` allows it"
                request.answer(responses.error(Refusal("invalid", said), 403))
                return
            asked = protocol.read_plain(request.body).get("parameters") or {}
            if not isinstance(asked, dict):
                raise Refusal("invalid", "`parameters` is an object")
            self._later(work(request, asked))

        return handle

    def _later(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _compress(response: Response, accepted: bytes) -> None:
    packed = bounds.deflated(response.pieces, accepted, binary=response.json is not None)
    if packed is not None:
        response.pieces = [packed[0]]
        response.headers += b"Content-Encoding: %b\r\n" % packed[1]


def _text(part: bytes) -> str:
    try:
        return unquote_to_bytes(part).decode()
    except UnicodeDecodeError as error:
        raise Refusal("not_found", "the path is no UTF-8") from error


def _not_allowed(allowed: bytes) -> Response:
    response = responses.error(Refusal("invalid", f"this path takes {allowed.decode()}"), 405)
    response.headers += b"Allow: %b\r\n" % allowed
    return response
