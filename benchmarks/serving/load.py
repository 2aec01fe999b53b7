"""Load: `wrk` for closed loops (its own cost is small), and an open loop of Poisson arrivals for tails.

The open loop never waits for an answer before it sends the next request, and a latency counts from the moment the
request was due, so a slow server cannot slow the load down and hide its tail (coordinated omission).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

_SCRIPT = """
local file = io.open("{body}", "rb")
wrk.method = "POST"
wrk.body = file:read("*a")
file:close()
{headers}
done = function(summary, latency, requests)
  local errors = summary.errors
  io.write(string.format("RESULT %d %d %d %.1f %.1f\\n", summary.requests, summary.duration,
    errors.status + errors.connect + errors.read + errors.write + errors.timeout,
    latency:percentile(50), latency:percentile(99)))
end
"""


@dataclass(frozen=True)
class Closed:
    """What a closed loop saw.

    Attributes:
        answered: requests with an answer.
        seconds: how long it took.
        errors: refusals, broken connections and timeouts among them.
        p50: median latency in seconds; `p99` likewise.
    """

    answered: int
    seconds: float
    errors: int
    p50: float
    p99: float

    @property
    def rate(self) -> float:
        return (self.answered - self.errors) / self.seconds


def closed(url: str, body: bytes, headers: Mapping[str, str], connections: int, seconds: float) -> Closed:
    """Sends the same request over `connections` for `seconds`, each as soon as the one before is answered."""
    if not shutil.which("wrk"):
        raise SystemExit("the load needs `wrk`: apt-get install wrk")
    with tempfile.TemporaryDirectory(prefix="portolan-load-") as folder:
        content, script = Path(folder) / "body", Path(folder) / "post.lua"
        content.write_bytes(body)
        lines = "\n".join(f"wrk.headers[{json.dumps(k)}] = {json.dumps(v)}" for k, v in headers.items())
        script.write_text(_SCRIPT.format(body=content, headers=lines))
        argv = ["wrk", "-t1", f"-c{connections}", f"-d{seconds:g}s", "--timeout", "30s", "-s", str(script), url]
        said = subprocess.run(argv, capture_output=True, text=True, check=True).stdout
    line = next(line for line in said.splitlines() if line.startswith("RESULT"))
    answered, micros, errors, p50, p99 = map(float, line.split()[1:])
    return Closed(int(answered), micros / 1e6, int(errors), p50 / 1e6, p99 / 1e6)


@dataclass(frozen=True)
class Open:
    """What an open loop saw, one entry per request, in order of arrival.

    Attributes:
        due: seconds from the start at which each was to be sent.
        status: HTTP status; 0 for a connection that broke.
        latency: seconds from `due` to the whole answer.
        late: seconds by which the generator itself was late in sending; a large value voids the run.
    """

    due: np.ndarray
    status: np.ndarray
    latency: np.ndarray
    late: np.ndarray

    def window(self, begin: float, end: float) -> Open:
        """Those due in [begin, end)."""
        chosen = (self.due >= begin) & (self.due < end)
        return Open(self.due[chosen], self.status[chosen], self.latency[chosen], self.late[chosen])

    def good(self, goal: float) -> int:
        """How many were answered within `goal` seconds."""
        return int(((self.status == 200) & (self.latency <= goal)).sum())

    def admitted(self) -> int:
        return int((self.status == 200).sum())

    def p99(self) -> float:
        """Of what was admitted."""
        return float(np.quantile(self.latency[self.status == 200], 0.99)) if self.admitted() else float("nan")


def arrivals(rate: float, seconds: float, seed: int) -> np.ndarray:
    """Times of a Poisson process of `rate` per second."""
    rng = np.random.default_rng(seed)
    gaps = rng.exponential(1 / rate, int(rate * seconds * 1.2) + 100)
    times = np.cumsum(gaps)
    return times[times < seconds]


def poisson(host: str, port: int, path: str, body: bytes, headers: Mapping[str, str], due: np.ndarray) -> Open:
    """Sends the request at each time of `due`, over as many connections as it takes."""
    lines = "".join(f"{k}: {v}\r\n" for k, v in headers.items())
    head = f"POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Length: {len(body)}\r\n{lines}\r\n"
    try:
        import uvloop

        run = uvloop.run
    except ImportError:
        run = asyncio.run
    return run(_poisson(host, port, head.encode() + body, due))


async def _poisson(host: str, port: int, message: bytes, due: np.ndarray) -> Open:
    loop = asyncio.get_running_loop()
    run = _Run(len(due))
    idle: list[_Client] = []
    connect = lambda: loop.create_connection(lambda: _Client(run, idle), host, port)  # noqa: E731
    for _, client in await asyncio.gather(*(connect() for _ in range(64))):
        idle.append(client)
    start = loop.time() + 0.05
    pending = set()
    for i, at in enumerate(due):
        wait = start + at - loop.time()
        if wait > 0 or i % 64 == 0:
            await asyncio.sleep(max(wait, 0))
        run.late[i] = loop.time() - start - at
        while idle and idle[-1].transport.is_closing():
            idle.pop()
        if idle:
            idle.pop().send(message, i, start + at)
        else:
            task = asyncio.create_task(_dial(connect, message, i, start + at, run))
            pending.add(task)
            task.add_done_callback(pending.discard)
    with contextlib.suppress(TimeoutError):  # what is still open then stays with status 0 and an endless latency
        await asyncio.wait_for(run.done.wait(), 30)
    for client in [*idle, *run.busy]:
        client.transport.close()
    return Open(due, run.status, run.latency, run.late)


async def _dial(connect, message: bytes, index: int, at: float, run: _Run) -> None:  # type: ignore[no-untyped-def]
    try:
        _, client = await connect()
    except OSError:
        run.finish(index, 0, float("inf"))
    else:
        client.send(message, index, at)


class _Run:
    def __init__(self, count: int) -> None:
        self.status = np.zeros(count, np.int32)
        self.latency = np.full(count, np.inf)
        self.late = np.zeros(count)
        self.left = count
        self.done = asyncio.Event()
        self.busy: set[_Client] = set()

    def finish(self, index: int, status: int, latency: float) -> None:
        self.status[index] = status
        self.latency[index] = latency
        self.left -= 1
        if not self.left:
            self.done.set()


class _Client(asyncio.Protocol):
    """One connection, one request at a time."""

    transport: asyncio.Transport

    def __init__(self, run: _Run, idle: list[_Client]) -> None:
        self._run, self._idle, self._loop = run, idle, asyncio.get_running_loop()
        self._index, self._at, self._need = -1, 0.0, -1
        self._got = bytearray()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]

    def send(self, message: bytes, index: int, at: float) -> None:
        self._index, self._at, self._need = index, at, -1
        self._run.busy.add(self)
        self.transport.write(message)

    def data_received(self, data: bytes) -> None:
        self._got += data
        if self._need < 0:
            end = self._got.find(b"\r\n\r\n")
            if end < 0:
                return
            head = bytes(self._got[:end]).lower()
            length = head.partition(b"content-length:")[2].partition(b"\r\n")[0]
            self._need = end + 4 + int(length or 0)
        if len(self._got) >= self._need:
            self._finish(int(self._got[9:12]))
            self._got.clear()
            if not self.transport.is_closing():
                self._idle.append(self)

    def connection_lost(self, _: Exception | None) -> None:
        if self._index >= 0:
            self._finish(0)

    def _finish(self, status: int) -> None:
        self._run.busy.discard(self)
        self._run.finish(self._index, status, self._loop.time() - self._at if status else float("inf"))
        self._index = -1
