"""Where ONNX Runtime Web runs: a Node process behind two pipes, or a page of a headless browser behind a local server.

Both speak frames (`portolan.core.frames`). A target's folder says which of them it is, in `web.json`, and holds the
packages of npm.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import queue
import secrets
import subprocess
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from portolan.core import chromium
from portolan.core.running import tied
from portolan.core.scratch import Scratch
from portolan.errors import PortolanError

if TYPE_CHECKING:
    import numpy as np

    from portolan.core.frames import Frame

VARIABLE = "PORTOLAN_WEB"
SETTINGS = "web.json"
_SCRIPTS = Path(__file__).resolve().parent / "_web"
_TYPES = {".html": "text/html", ".mjs": "text/javascript", ".wasm": "application/wasm"}
#: Seconds that a page waits for a request before it asks again, and that a browser has to show its page.
_POLL, _START = 5.0, 90.0
#: Nothing but the page's own address is looked up, and nothing runs that is not about the page.


@dataclass(frozen=True)
class Web:
    """A target's folder of npm packages.

    Attributes:
        engine: `wasm` under Node, `webgpu` in a browser.
        program: the path of Node or of the browser.
    """

    folder: Path
    engine: str
    program: str

    @property
    def package(self) -> Path:
        """The folder of ONNX Runtime Web."""
        return self.folder / "node_modules" / "onnxruntime-web"

    def version(self) -> str | None:
        """Of ONNX Runtime Web; None where it is not there."""
        try:
            return str(json.loads((self.package / "package.json").read_text(encoding="utf-8"))["version"])
        except (OSError, ValueError, KeyError):
            return None

    def engine_version(self) -> str | None:
        """What Node or the browser says of itself; None where it does not."""
        try:
            done = subprocess.run([self.program, "--version"], capture_output=True, text=True, timeout=60, check=False)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() or None


def web() -> Web | None:
    """What PORTOLAN_WEB names, which a target sets for its workers; None without it, or where it cannot be read."""
    place = os.environ.get(VARIABLE)
    if not place:
        return None
    try:
        data = json.loads((Path(place) / SETTINGS).read_text(encoding="utf-8"))
        return Web(Path(place), str(data["engine"]), str(data["program"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


class EngineLost(PortolanError):
    """Node or the browser ended, or never showed its page."""


class Engine(ABC):
    """One loaded model behind frames; calls come one at a time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()

    def ask(self, op: str, tensors: Mapping[str, np.ndarray]) -> Frame:
        """Sends a request and waits for its answer.

        Raises:
            RuntimeError: what ONNX Runtime Web raised, in its words.
            EngineLost: the process is gone.
        """
        from portolan.core import frames  # with NumPy, which whoever only probes is spared

        with self._lock:
            reply = frames.decode(self._exchange(b"".join(frames.encode({"op": op}, tensors))))
        if problem := reply.fields.get("error"):
            raise RuntimeError(str(problem["message"]))
        return reply

    @abstractmethod
    def _exchange(self, request: bytes) -> Callable[[int], bytearray]:
        """Sends a frame; what reads the answer, so many bytes at a time."""

    @abstractmethod
    def close(self) -> None:
        """Ends the process; harmless when it is over."""


class Node(Engine):
    """WebAssembly under Node."""

    def __init__(self, found: Web) -> None:
        super().__init__()
        self._process = subprocess.Popen(
            tied([found.program, str(_SCRIPTS / "node.mjs"), str(found.folder)]),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self._pipes = cast(BinaryIO, self._process.stdin), cast(BinaryIO, self._process.stdout)

    def _exchange(self, request: bytes) -> Callable[[int], bytearray]:
        try:
            self._pipes[0].write(request)
            self._pipes[0].flush()
        except BrokenPipeError as error:
            raise self._lost() from error
        return self._read

    def _read(self, size: int) -> bytearray:
        data = self._pipes[1].read(size)
        if len(data) < size:
            raise self._lost()
        return bytearray(data)

    def _lost(self) -> EngineLost:
        return EngineLost(f"Node ended with code {self._process.wait()}", hint="-v shows its last words")

    def close(self) -> None:
        """Ends Node."""
        self._process.kill()
        self._process.wait()
        for pipe in self._pipes:
            with contextlib.suppress(OSError):
                pipe.close()


class Browser(Engine):
    """WebGPU in a page that asks a server of ours for requests, under an address that nobody can guess."""

    def __init__(self, found: Web) -> None:
        super().__init__()
        self._requests: queue.Queue[bytes] = queue.Queue()
        self._answers: queue.Queue[bytes | str] = queue.Queue()
        self.secret = secrets.token_urlsafe(16)
        self.asked = threading.Event()
        files = {name: _SCRIPTS / name for name in ("page.html", "agent.mjs")}
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Door, self, files, found.package / "dist"))
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self._scratch = Scratch("portolan-browser-")
        profile = self._scratch.path
        address = f"http://127.0.0.1:{self._server.server_port}/{self.secret}/page.html"
        self._process = subprocess.Popen(
            tied(chromium.command(found.program, profile, address)),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=chromium.environment(profile),
        )
        if not self.asked.wait(_START):
            told = self._told()
            self.close()
            raise EngineLost(
                f"the page of `{found.program}` did not start: {told}", hint=f"does `{found.program}` run here at all?"
            )

    def request(self) -> bytes | None:
        """The next request for the page; None after a while without one."""
        self.asked.set()
        try:
            return self._requests.get(timeout=_POLL)
        except queue.Empty:
            return None

    def answered(self, body: bytes | str) -> None:
        """What the page posted: an answer, or in words why there will be none."""
        self._answers.put(body)

    def _exchange(self, request: bytes) -> Callable[[int], bytearray]:
        self._requests.put(request)
        while True:
            try:
                body = self._answers.get(timeout=_POLL)
                break
            except queue.Empty:
                if self._process.poll() is not None:
                    code = self._process.returncode
                    raise EngineLost(f"the browser ended with code {code}", hint="repeat the command") from None
        if isinstance(body, str):
            raise EngineLost(f"the page failed: {body[:300]}", hint="repeat the command")
        source = io.BytesIO(body)
        return lambda size: bytearray(source.read(size))

    def _told(self) -> str:
        with contextlib.suppress(queue.Empty):
            return str(self._answers.get_nowait())
        code = self._process.poll()
        return f"no page within {_START:g} s" if code is None else f"it ended with code {code}"

    def close(self) -> None:
        """Ends browser and server, and removes what they wrote."""
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._server.shutdown()
        self._server.server_close()
        self._scratch.close()


class _Door(BaseHTTPRequestHandler):
    """The page, its scripts, and the two ends of the conversation, below a secret path."""

    protocol_version = "HTTP/1.1"

    def __init__(self, browser: Browser, files: Mapping[str, Path], dist: Path, *rest: Any) -> None:
        self._browser, self._files, self._dist = browser, files, dist
        super().__init__(*rest)

    def do_GET(self) -> None:
        """Files, and requests."""
        name = self._name()
        if name == "next":
            request = self._browser.request()
            self._send(204 if request is None else 200, request or b"", "application/octet-stream")
            return
        path = self._files.get(name or "")
        if path is None and name and name.startswith("dist/") and "/" not in name[5:] and ".." not in name:
            path = self._dist / name[5:]
        if path is None or not path.is_file():
            self._send(404, b"", "text/plain")
            return
        self._send(200, path.read_bytes(), _TYPES.get(path.suffix, "application/octet-stream"))

    def do_POST(self) -> None:
        """Answers."""
        name = self._name()
        if name not in ("answer", "failed"):
            self._send(404, b"", "text/plain")
            return
        body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
        self._browser.answered(body if name == "answer" else body.decode(errors="replace"))
        self._send(204, b"", "text/plain")

    def _name(self) -> str | None:
        """The path below the secret; None for whoever does not know it."""
        _, secret, *rest = [*self.path.split("/", 2), ""]
        return rest[0] if secrets.compare_digest(secret, self._browser.secret) else None

    def _send(self, status: int, body: bytes, kind: str) -> None:
        with contextlib.suppress(ConnectionError):
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Cache-Control", "no-store")
            if status != 204:
                self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Says nothing: a worker's log is for failures."""


def start(found: Web) -> Engine:
    """Starts what `found` says.

    Raises:
        EngineLost: it does not start.
    """
    try:
        return Browser(found) if found.engine == "webgpu" else Node(found)
    except OSError as error:
        raise EngineLost(
            f"`{found.program}` cannot be started: {error.strerror}", hint="portolan target list, and add it again"
        ) from error
