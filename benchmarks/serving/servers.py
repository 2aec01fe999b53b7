"""Starts and stops the servers that are compared, and reads what CPU their processes have used."""

from __future__ import annotations

import hashlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from load import closed
from workloads import Workload

import portolan as api

HOSTS = Path(__file__).parent / "hosts"
ROOT = Path(__file__).parents[2]
PEERS = ("mlserver", "litserve", "kserve", "ray")
#: A process carries this variable from birth, so daemons that leave their parents are still counted and ended.
MARK = "PORTOLAN_BENCHMARK"
_TICK = os.sysconf("SC_CLK_TCK")


@dataclass
class Server:
    """A running server.

    Attributes:
        name: of the product.
        url: where a request for inference goes.
        ready: what answers 200 when it serves.
        mark: value of the variable that all of its processes carry.
    """

    name: str
    port: int
    path: str
    ready: str
    mark: str
    process: subprocess.Popen[bytes]
    log: Path
    started: float = field(default_factory=time.monotonic)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}{self.path}"

    def pids(self) -> list[int]:
        """Its processes: what it started, and what carries its mark."""
        parents: dict[int, int] = {}
        marked = {self.process.pid}
        wanted = f"{MARK}={self.mark}".encode()
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            try:
                parents[int(entry.name)] = int(_stat(entry)[1])
                if wanted in (entry / "environ").read_bytes().split(b"\0"):
                    marked.add(int(entry.name))
            except OSError:
                continue
        return [pid for pid in parents if _under(pid, marked, parents)]

    def cpu(self, module: str = "") -> float:
        """Seconds of CPU, user and system, of all its living processes, or of those that run a module: fields 14 and 15
        of /proc/PID/stat.
        """
        total = 0
        for pid in self.pids():
            try:
                if module.encode() not in Path(f"/proc/{pid}/cmdline").read_bytes():
                    continue
                fields = _stat(Path("/proc") / str(pid))
            except OSError:
                continue
            total += int(fields[11]) + int(fields[12])
        return total / _TICK

    def memory(self) -> int:
        """Resident bytes of all its processes, shared pages counted in each."""
        pages = 0
        for pid in self.pids():
            try:
                pages += int(Path(f"/proc/{pid}/statm").read_text().split()[1])
            except OSError:
                continue
        return pages * os.sysconf("SC_PAGE_SIZE")

    def ask(self, body: bytes, headers: Mapping[str, str]) -> bytes:
        """One request; its answer's body."""
        request = urllib.request.Request(self.url, body, dict(headers))
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.read()

    def ran(self) -> tuple[int, int]:
        """Rows and batches that ran so far, of our own server."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=30) as answer:
            lines = answer.read().decode().splitlines()
        found = {line.partition("{")[0]: line.split()[-1] for line in lines if "{" in line}
        return int(found["nv_inference_count"]), int(found["nv_inference_exec_count"])

    def wait(self, seconds: float) -> None:
        """Until it answers that it is ready."""
        while time.monotonic() < self.started + seconds:
            if self.process.poll() is not None:
                raise SystemExit(f"{self.name} ended with {self.process.returncode}:\n{self.tail()}")
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{self.ready}", timeout=2) as answer:
                    if answer.status == 200:
                        return
            except (urllib.error.URLError, OSError):
                time.sleep(0.1)
        raise SystemExit(f"{self.name} was not ready after {seconds:.0f} s:\n{self.tail()}")

    def tail(self) -> str:
        return self.log.read_text(errors="replace")[-2000:]

    def stop(self) -> None:
        """Ends every process of it, politely first."""
        pids = self.pids()
        self.process.send_signal(signal.SIGTERM)
        end = time.monotonic() + 15
        while self.process.poll() is None and time.monotonic() < end:
            time.sleep(0.05)
        for pid in {*pids, *self.pids()}:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self.process.wait(10)


def _stat(entry: Path) -> list[str]:
    """The fields of /proc/PID/stat after the name, which may hold blanks: the third is the first of them."""
    return (entry / "stat").read_text().rpartition(")")[2].split()


def _under(pid: int, roots: set[int], parents: Mapping[int, int]) -> bool:
    while pid in parents:
        if pid in roots:
            return True
        pid = parents[pid]
    return False


def free_port(count: int = 1) -> int:
    """The first of so many free ports in a row."""
    while True:
        with ExitStack() as held:
            first = held.enter_context(socket.socket())
            first.bind(("127.0.0.1", 0))
            port = int(first.getsockname()[1])
            try:
                for more in range(1, count):
                    held.enter_context(socket.socket()).bind(("127.0.0.1", port + more))
            except OSError:
                continue
            return port


@contextmanager
def portolan(bundle: Path, model: str, *flags: str) -> Iterator[Server]:
    """Our own server on one bundle, as a wheel installs it."""
    port = free_port()
    argv = [sys.executable, "-m", "portolan", "serve", str(bundle), "--port", str(port), *flags]
    more = {"PYTHONPATH": str(installed(bundle.parent))}
    with _running("portolan", argv, port, f"/v2/models/{model}/infer", "/v2/health/ready", more) as server:
        yield server


def installed(folder: Path) -> Path:
    """The project as a wheel installs it: with a C compiler the server is compiled, which an editable install is not.

    It is built once for each state of the sources, into `folder`; `PORTOLAN_COMPILE=0` leaves it interpreted.
    """
    sources = [ROOT / "hatch_build.py", ROOT / "pyproject.toml", *sorted((ROOT / "src").rglob("*.py"))]
    state = hashlib.sha256(os.environ.get("PORTOLAN_COMPILE", "").encode())
    for path in sources:
        state.update(path.read_bytes())
    site = folder / f"site-{state.hexdigest()[:12]}"
    if not site.exists():
        part = folder / f"part-{os.getpid()}"
        subprocess.run([sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", part, ROOT], check=True)
        part.rename(site)
    compiled = any((site / "portolan" / "serving").glob("*.so"))
    print(f"the server is {'compiled' if compiled else 'interpreted'}", file=sys.stderr, flush=True)
    return site


@contextmanager
def peer(name: str, environments: Path, model: Path) -> Iterator[Server]:
    """Another server on the same model, in its own environment; MLServer takes three ports."""
    port, python = free_port(3), environments / name / "bin" / "python"
    if not python.is_file():
        raise SystemExit(f"no `{python}`: run `benchmarks/serving/peers.sh {environments} {name}`")
    paths = {"litserve": ("/predict", "/health"), "ray": ("/infer", "/-/healthz")}
    path, ready = paths.get(name, ("/v2/models/identity/infer", "/v2/models/identity/ready"))
    argv = [str(python), str(HOSTS / f"{name}_host.py"), str(model), str(port)]
    more = {"PATH": f"{python.parent}:{os.environ['PATH']}"}
    with _running(name, argv, port, path, ready, more) as server:
        yield server


@contextmanager
def _running(name: str, argv: list[str], port: int, path: str, ready: str, more: Mapping[str, str]) -> Iterator[Server]:
    mark = uuid.uuid4().hex
    quiet = {"RAY_USAGE_STATS_ENABLED": "0", "ORT_DISABLE_TELEMETRY": "1", "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory(prefix="portolan-serving-") as folder:
        log = Path(folder) / "log"
        with log.open("wb") as sink:
            process = subprocess.Popen(
                argv,
                stdout=sink,
                stderr=sink,
                cwd=folder,
                env={**os.environ, **quiet, **more, MARK: mark},
                start_new_session=True,
            )
        server = Server(name, port, path, ready, mark, process, log)
        try:
            server.wait(120)
            yield server
        finally:
            server.stop()


def bundle(work: Workload, folder: Path) -> Path:
    """A bundle of it for ONNX Runtime, one thread per instance, made by the public verbs unless it is there."""
    out = folder / f"{work.name}.portolan"
    if out.exists():
        return out
    recipe = {"backend": "onnxruntime", "options": {"threads": 1, "spinning": False}, "serving": work.serving}
    study = folder / f"{work.name}.study"
    found = api.optimize(work.path, goals=["min latency_p50"], recipe=recipe, study=study, budget="60s")
    pinned = [t for t in found.trials if t.recipe.options.get("threads") == 1]
    good = next((t.id for t in pinned if t.status == "ok"), None)
    if good is None:
        raise SystemExit(f"{work.name} has no trial with one thread: {[t.reason for t in pinned]}; see {study}")
    api.pack(study, out=out, trial=good)
    return out


@dataclass(frozen=True)
class During:
    """What our server did under load.

    Attributes:
        us: CPU microseconds per row.
        front: those of the front among them.
        rate: rows per second.
        batch: rows of an average batch.
    """

    us: float
    front: float
    rate: float
    batch: float


def during(server: Server, body: bytes, headers: Mapping[str, str], connections: int, seconds: float) -> During:
    """What ours does in the middle of a closed loop.

    Both are read while the load goes on. Counting what the load generator got would be wrong for slow models: batches
    that run when it begins and ends cost CPU, and are nobody's answers.
    """
    load = threading.Thread(target=closed, args=(server.url, body, headers, connections, seconds + 5))
    load.start()
    time.sleep(3)
    front = "portolan.serving.front"
    before = (*server.ran(), server.cpu(), server.cpu(front), time.monotonic())
    time.sleep(seconds)
    after = (*server.ran(), server.cpu(), server.cpu(front), time.monotonic())
    load.join()
    rows, batches, used, fronts, passed = (b - a for a, b in zip(before, after, strict=True))
    return During(used / rows * 1e6, fronts / rows * 1e6, rows / passed, rows / batches)


def say(line: str, held: bool) -> int:
    """Prints whether a bound held; how many were missed."""
    print(("held    " if held else "MISSED  ") + line, flush=True)
    return int(not held)
