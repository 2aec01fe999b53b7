"""What the Dockerfile says, done without a container engine: its `pip` line in a fresh environment, its command, its
health check, and SIGTERM.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest

import portolan
from portolan.bundle import open_bundle
from portolan.deployment import Choices, deploy

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow


def _lines(dockerfile: Path, word: str) -> list[str]:
    """The instructions of a kind, without their word."""
    lines = dockerfile.read_text(encoding="utf-8").splitlines()
    return [line.removeprefix(f"{word} ") for line in lines if line.startswith(f"{word} ")]


def _free() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@pytest.mark.timeout(560)
def test_the_image_would_serve(tmp_path: Path) -> None:
    bundle = tmp_path / "digits.portolan"
    portolan.pack("demo:digits", out=bundle)
    deploy(bundle, ["docker"], Choices(), out=tmp_path / "out", force=False, dry_run=False)
    context, venv = tmp_path / "out" / "docker", tmp_path / "venv"
    with open_bundle(bundle) as opened:
        image = opened.feeds(0)["image"]
        wanted = opened.run({"image": image})["logits"]
    clean = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    # The wheel of this source beside the Dockerfile, as the guide says of an unreleased Portolan.
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(context), str(ROOT)], check=True, env=clean
    )
    subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
    environment = {**clean, "PATH": f"{venv / 'bin'}:{clean['PATH']}", "HOME": str(tmp_path)}
    (install,) = [line for line in _lines(context / "Dockerfile", "RUN") if line.startswith("pip ")]
    subprocess.run(shlex.split(install), check=True, cwd=context, env=environment, stdout=subprocess.DEVNULL)

    port, grpc = _free(), _free()
    (command,) = _lines(context / "Dockerfile", "CMD")
    ports = {"8000": str(port), "8001": str(grpc), "0.0.0.0": "127.0.0.1", "/srv/bundle": str(context / "bundle")}
    words = [ports.get(word, word) for word in json.loads(command)]
    check = _lines(context / "Dockerfile", "HEALTHCHECK")[0].partition(" CMD ")[2].replace(":8000/", f":{port}/")
    log = tmp_path / "server.log"
    with log.open("wb") as out:
        server = subprocess.Popen(words, env=environment, stdout=out, stderr=out, cwd=tmp_path)
    try:
        end = time.monotonic() + 60
        while subprocess.run(json.loads(check), env=environment, capture_output=True, check=False).returncode:
            assert server.poll() is None, log.read_text()
            assert time.monotonic() < end, log.read_text()
            time.sleep(0.2)
        tensor = {"name": "image", "datatype": "FP32", "shape": list(image.shape), "data": image.reshape(-1).tolist()}
        body = json.dumps({"inputs": [tensor]}).encode()
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/v2/models/digits/infer", body, timeout=30) as answer:
            got = json.load(answer)["outputs"][0]["data"]
        np.testing.assert_allclose(got, wanted.reshape(-1), rtol=1e-4, atol=1e-4)
        with socket.create_connection(("127.0.0.1", grpc), timeout=5):
            pass
        server.send_signal(signal.SIGTERM)
        assert server.wait(30) == 0, log.read_text()
    finally:
        with contextlib.suppress(ProcessLookupError):
            server.kill()
        server.wait()
    assert subprocess.run(json.loads(check), env=environment, capture_output=True, check=False).returncode != 0
