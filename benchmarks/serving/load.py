"""Load: `wrk` for closed loops (its own cost is small), and an open loop of Poisson arrivals for tails.

The open loop never waits for an answer before it sends the next request, and a latency counts from the moment the
request was due, so a slow server cannot slow the load down and hide its tail (coordinated omission).
"""

from __future__ import annotations

import json
import os
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
    """Sends the request at each time of `due`, over as many connections as it takes; see open.c."""
    lines = "".join(f"{k}: {v}\r\n" for k, v in headers.items())
    head = f"POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Length: {len(body)}\r\n{lines}\r\n"
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if compiler is None:
        raise SystemExit("the open loop needs a C compiler: apt-get install gcc")
    with tempfile.TemporaryDirectory(prefix="portolan-load-") as folder:
        program, message, times, found = (Path(folder) / name for name in ("open", "message", "due", "found"))
        subprocess.run([compiler, "-O2", "-o", program, Path(__file__).with_name("open.c")], check=True)
        message.write_bytes(head.encode() + body)
        times.write_bytes(due.astype(np.float64).tobytes())
        subprocess.run([program, host, str(port), message, times, found], check=True)
        status, latency, late = np.fromfile(found).reshape(-1, 3).T
    return Open(due, status.astype(np.int32), latency, late)
