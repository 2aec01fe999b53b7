"""WebGPU through a headless Chromium: a page that asks this process for work, and posts what came of it.

The page's address holds a word that only the browser started here knows. Nothing else is served, and nothing is fetched
from elsewhere.
"""

from __future__ import annotations

import json
import queue
import secrets
import struct
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any

from portolan.core import chromium
from portolan.core.running import tied
from portolan.core.scratch import Scratch
from portolan.errors import NoBackend, WorkerError

_SECONDS = 120.0
_GOODBYE = 10.0
#: How long the page waits for work before it asks again.
_PATIENCE = 20.0


class Browser:
    """A running browser with a page that has a WebGPU device.

    Raises:
        NoBackend: there is no browser, or it has no WebGPU.
    """

    def __init__(self) -> None:
        program = chromium.found()
        if program is None:
            raise NoBackend("there is no Chromium", hint="apt install chromium, or name one: PORTOLAN_CHROMIUM=/path")
        self._asked: queue.Queue[bytes] = queue.Queue()
        self._done: queue.Queue[bytes] = queue.Queue()
        self._word = secrets.token_urlsafe(16)
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self._scratch = Scratch("portolan-browser-")
        profile = self._scratch.path
        # In this process's group: whoever ends a worker at once ends its browser too.
        self._process = subprocess.Popen(
            tied(chromium.command(program, profile, self._url("page"))),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            stdin=subprocess.DEVNULL,
            env=chromium.environment(profile),
        )
        try:
            self.adapter = str(self._answer()["adapter"])
        except BaseException:
            self.close()
            raise

    def ask(self, job: dict[str, Any], data: bytes) -> tuple[dict[str, Any], bytes]:
        """Sends a job with its bytes; the page's answer and its bytes.

        Raises:
            WorkerError: the page says that it failed, or says nothing.
        """
        head = json.dumps(job).encode()
        head += b" " * (-len(head) % 4)
        self._asked.put(struct.pack("<I", len(head)) + head + data)
        answer = self._answer()
        return answer, answer.pop("data")

    def _answer(self) -> dict[str, Any]:
        try:
            raw = self._done.get(timeout=_SECONDS)
        except queue.Empty:
            raise WorkerError(f"the browser did not answer within {_SECONDS:.0f} s") from None
        (size,) = struct.unpack_from("<I", raw)
        answer: dict[str, Any] = json.loads(raw[4 : 4 + size])
        if "error" in answer:
            raise WorkerError(f"WebGPU: {str(answer['error'])[:800]}")
        return {**answer, "data": raw[4 + size :]}

    def close(self) -> None:
        """Ends the browser and all that it started."""
        self._process.terminate()
        try:
            self._process.wait(_GOODBYE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._server.shutdown()
        self._server.server_close()
        self._scratch.close()

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.close()

    def _url(self, what: str) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}/{self._word}/{what}"

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        browser = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                if self.path == f"/{browser._word}/page":
                    self._send(200, "text/html", (Path(__file__).parent / "webgpu.html").read_bytes())
                elif self.path == f"/{browser._word}/job":
                    try:
                        self._send(200, "application/octet-stream", browser._asked.get(timeout=_PATIENCE))
                    except queue.Empty:
                        self._send(204, "text/plain", b"")
                else:
                    self._send(404, "text/plain", b"")

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.path == f"/{browser._word}/done":
                    browser._done.put(body)
                self._send(200, "text/plain", b"")

            def _send(self, code: int, kind: str, body: bytes) -> None:
                self.send_response(code)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        return Handler
