"""Ray Serve run for real: two replicas of a bundle, the same answers as the bundle gives, one replica killed.

Ray lives in an interpreter of its own, which `PORTOLAN_TEST_RAY` names (`make test-all` makes one). It gets a temporary
folder, an address, a token and a home of its own, and only the processes that this test started are ended.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import portolan
from portolan.bundle import open_bundle
from portolan.deployment import Choices, deploy
from support.deploying import emit, measured_bundle, onnx_bundle

PYTHON = os.environ.get("PORTOLAN_TEST_RAY") or sys.executable
CHECK = """
import json, sys
from ray.serve.config import AutoscalingConfig
from ray.serve.schema import ServeDeploySchema

def lost(asked, kept, path="$"):
    if isinstance(asked, dict):
        if not isinstance(kept, dict):
            return [path]
        here = [f"{path}.{k}" for k in asked if k not in kept]
        return here + [p for k, v in asked.items() if k in kept for p in lost(v, kept[k], f"{path}.{k}")]
    if isinstance(asked, list):
        return [p for i, (a, k) in enumerate(zip(asked, kept)) for p in lost(a, k, f"{path}[{i}]")]
    return []

def faults(document):
    try:
        kept = ServeDeploySchema.model_validate(document).model_dump(exclude_unset=True)
        found = lost(document, kept)
        for application in document["applications"]:
            for deployment in application["deployments"]:
                auto = deployment.get("autoscaling_config", {})
                AutoscalingConfig(**auto)
                found += sorted(auto.keys() - AutoscalingConfig.model_fields.keys())
        return found
    except Exception as error:
        return [f"{type(error).__name__}: {error}"[:300]]

print(json.dumps([faults(document) for document in json.load(sys.stdin)]))
"""


def _has_ray() -> bool:
    code = "import importlib.util as u, sys; sys.exit(0 if u.find_spec('ray.serve') and u.find_spec('uvloop') else 1)"
    return subprocess.run([PYTHON, "-c", code], capture_output=True, check=False).returncode == 0


pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not _has_ray(), reason="no interpreter with ray[serve]: `PORTOLAN_TEST_RAY` names one"),
]


# --- the schema


def _faults(*documents: Any) -> list[list[str]]:
    done = subprocess.run(
        [PYTHON, "-c", CHECK], input=json.dumps(documents), capture_output=True, text=True, check=True
    )
    return list(json.loads(done.stdout.splitlines()[-1]))


def _configuration(bundle: Path, out: Path, **choices: Any) -> Any:
    import yaml

    return yaml.safe_load((emit(bundle, "ray-serve", out, **choices) / "config.yaml").read_text(encoding="utf-8"))


def test_ray_takes_the_configuration_and_refuses_mutants(tmp_path: Path) -> None:
    bare = _configuration(onnx_bundle(tmp_path / "a"), tmp_path / "bare")
    full = _configuration(measured_bundle(tmp_path / "b"), tmp_path / "full")
    assert _faults(bare, full) == [[], []]
    changes: list[Callable[[Any], Any]] = [
        lambda d: d["deployments"][0].update(max_ongoing_request=3),
        lambda d: d["deployments"][0].update(max_ongoing_requests="many"),
        lambda d: d["deployments"][0]["autoscaling_config"].update(min_replicas=9),
        lambda d: d["deployments"][0]["autoscaling_config"].update(target_ongoing=9),
        lambda d: d["deployments"][0]["ray_actor_options"].update(num_cpus="all"),
        lambda d: d.update(import_path="no module"),
        lambda d: d.update(argz={}),
    ]
    mutants = []
    for change in changes:
        mutant = json.loads(json.dumps(full))
        change(mutant["applications"][0])
        mutants.append(mutant)
    found = _faults(*mutants)
    assert all(found), [i for i, faults in enumerate(found) if not faults]


# --- the application


@dataclass
class Cluster:
    """A Ray of our own."""

    head: subprocess.Popen[bytes]
    environment: dict[str, str]
    folder: Path
    log: Path

    def processes(self) -> dict[int, str]:
        """What the head has started, directly or not: command lines by process id."""
        found: dict[int, tuple[int, str]] = {}
        for place in Path("/proc").iterdir():
            if place.name.isdigit():
                with contextlib.suppress(OSError, IndexError):
                    parent = int((place / "stat").read_text().rpartition(")")[2].split()[1])
                    found[int(place.name)] = parent, (place / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        ours = {self.head.pid}
        while more := {pid for pid, (parent, _) in found.items() if parent in ours and pid not in ours}:
            ours |= more
        return {pid: found[pid][1] for pid in ours if pid in found}

    def replicas(self) -> list[int]:
        """The process ids of Ray's replicas."""
        return sorted(pid for pid, text in self.processes().items() if text.startswith("ray::ServeReplica"))


def _free() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    short = Path(tempfile.mkdtemp(prefix="ray", dir="/tmp"))  # Ray's sockets lie there, and their paths may not be long
    address = f"127.0.0.1:{_free()}"
    source = Path(portolan.__file__).parents[1]
    environment = {
        **{k: v for k, v in os.environ.items() if not k.startswith("RAY_")},
        "PYTHONPATH": str(source), "HOME": str(tmp_path), "RAY_USAGE_STATS_ENABLED": "0", "RAY_ADDRESS": address,
        "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(16),
    }  # fmt: skip
    argv = [
        *(str(Path(PYTHON).parent / "ray"), "start", "--head", "--block", "--node-ip-address", "127.0.0.1"),
        *("--port", address.partition(":")[2], "--num-cpus", "4", "--temp-dir", str(short)),
        *("--include-dashboard", "false", "--disable-usage-stats"),
    ]
    log = tmp_path / "ray.log"
    with log.open("wb") as out:
        head = subprocess.Popen(argv, env=environment, stdout=out, stderr=out, start_new_session=True)
    ours = Cluster(head, environment, short, log)
    try:
        _until(lambda: "block forever" in log.read_text(errors="replace"), 60, log)
        yield ours
    finally:
        started = list(ours.processes())
        head.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            head.wait(15)
        for pid in started:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        head.wait()
        shutil.rmtree(short, ignore_errors=True)


def _until(good: Callable[[], Any], seconds: float, log: Path) -> Any:
    end = time.monotonic() + seconds
    while not (found := good()):
        assert time.monotonic() < end, f"not within {seconds} s:\n{log.read_text(errors='replace')[-3000:]}"
        time.sleep(0.2)
    return found


def _ask(url: str, body: bytes | None = None) -> tuple[int, bytes]:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, body), timeout=30) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()
    except OSError:
        return 0, b""


@contextlib.contextmanager
def _application(cluster: Cluster, folder: Path, port: int, **environment: str) -> Iterator[str]:
    """The emitted application, run as its `next` line says, on another port."""
    config = folder / "config.yaml"
    config.write_text(config.read_text().replace("port: 8000", f"port: {port}"))
    log = folder / "serve.log"
    with log.open("wb") as out:
        run = subprocess.Popen(
            [str(Path(PYTHON).parent / "serve"), "run", "config.yaml"], cwd=folder, stdout=out, stderr=out,
            env={**cluster.environment, **environment}, start_new_session=True,
        )  # fmt: skip
    url = f"http://127.0.0.1:{port}"
    try:
        _until(lambda: _ask(f"{url}/v2/health/ready")[0] == 200, 120, log)
        yield url
    finally:
        run.send_signal(signal.SIGINT)
        try:
            run.wait(60)
        except subprocess.TimeoutExpired:
            run.kill()
            run.wait()


@pytest.mark.timeout(420)
def test_two_replicas_answer_and_one_may_die(cluster: Cluster, tmp_path: Path) -> None:
    bundle = tmp_path / "digits.portolan"
    portolan.pack("demo:digits", out=bundle)
    deploy(bundle, ["ray-serve"], Choices(replicas=(2, 2)), out=tmp_path / "out", force=False, dry_run=False)
    with open_bundle(bundle) as opened:
        images = np.concatenate([opened.feeds(row)["image"] for row in range(opened.manifest.rows)])
        wanted = [opened.run({"image": image[None]})["logits"] for image in images]
        tolerance = opened.manifest.tolerance["logits"]
    with _application(cluster, tmp_path / "out" / "ray-serve", _free()) as url:
        log = tmp_path / "out" / "ray-serve" / "serve.log"

        def answers(number: int) -> bool:
            status, body = _ask(f"{url}/v2/models/digits/infer", _request(images[number : number + 1]))
            if status != 200:
                return False
            got = np.array(json.loads(body)["outputs"][0]["data"]).reshape(wanted[number].shape)
            np.testing.assert_allclose(got, wanted[number], rtol=tolerance.rtol, atol=tolerance.atol)
            return True

        before = _until(lambda: len(found := cluster.replicas()) == 2 and found, 60, log)
        assert all(answers(i) for i in range(len(images)))
        assert _ask(f"{url}/v2/models/nope")[0] == 404
        os.kill(before[0], signal.SIGKILL)
        _until(lambda: answers(0), 20, log)  # the other one; a call that was on its way may fail
        after = _until(lambda: len(found := cluster.replicas()) == 2 and before[0] not in found and found, 90, log)
        assert before[1] in after
        _until(lambda: all(answers(i) for i in range(len(images))), 30, log)


def _request(images: np.ndarray) -> bytes:
    tensor = {"name": "image", "datatype": "FP32", "shape": list(images.shape), "data": images.reshape(-1).tolist()}
    return json.dumps({"inputs": [tensor]}).encode()
