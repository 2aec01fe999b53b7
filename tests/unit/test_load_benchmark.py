"""The open loop of benchmarks/serving: what it sends, and what it makes of slow answers, refusals and broken ones."""

from __future__ import annotations

import importlib.util
import shutil
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks" / "serving"
SLOW = 0.2

pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler")


@pytest.fixture(scope="module")
def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("serving_load", FOLDER / "load.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def port() -> Iterator[int]:
    """A server whose answers depend on the request's number: the 3rd is refused, the 5th breaks, the 7th is slow."""
    listening = socket.create_server(("127.0.0.1", 0))
    count, lock = [0], threading.Lock()

    def talk(client: socket.socket) -> None:
        with client:
            while message := client.recv(1 << 16):
                assert message.startswith(b"POST /infer HTTP/1.1\r\n")
                assert message.endswith(b"\r\n\r\nbody")
                with lock:
                    count[0] += 1
                    number = count[0]
                if number == 5:
                    return
                if number == 7:
                    time.sleep(SLOW)
                status = b"503 Service Unavailable" if number == 3 else b"200 OK"
                client.sendall(b"HTTP/1.1 %b\r\nContent-Length: 3\r\n\r\n" % status)
                time.sleep(0.01)  # an answer in two pieces
                client.sendall(b"yes")

    def accept() -> None:
        while True:
            try:
                client, _ = listening.accept()
            except OSError:
                return
            threading.Thread(target=talk, args=(client,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    yield int(listening.getsockname()[1])
    listening.close()


def test_every_request_is_sent_when_it_is_due_whatever_became_of_others(load: ModuleType, port: int) -> None:
    due = np.arange(10) * 0.1  # far enough apart to arrive in order on a machine that stalls for a moment
    found = load.poisson("127.0.0.1", port, "/infer", b"body", {"X-Kind": "test"}, due)
    assert found.status.tolist() == [200, 200, 503, 200, 0, 200, 200, 200, 200, 200]
    assert np.isinf(found.latency[4])
    assert found.latency[6] >= SLOW
    assert (found.latency[[0, 1, 2, 3, 5]] >= 0.01).all()
    assert found.admitted() == 8
    assert found.good(SLOW) <= 7
    assert found.window(0.15, 0.35).status.tolist() == [503, 200]
    assert (found.late >= 0).all()
