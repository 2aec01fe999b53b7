"""Large tensors over HTTP: received where replicas read them, and sent from where replicas wrote them."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator

import numpy as np
import pytest

from support.serving import Server, identity, pack, serving

ROWS, WIDTH = 20_000, 16


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("large")
    with serving(pack(identity(folder / "same.onnx"), folder / "same.portolan")) as running:
        yield running


def request(values: np.ndarray) -> bytes:
    told = {
        "inputs": [
            {
                "name": "x",
                "shape": list(values.shape),
                "datatype": "FP32",
                "parameters": {"binary_data_size": values.nbytes},
            }
        ],
        "parameters": {"binary_data_output": True},
    }
    head, raw = json.dumps(told).encode(), values.tobytes()
    lines = (
        "POST /v2/models/same/infer HTTP/1.1",
        "Host: here",
        f"Content-Length: {len(head) + len(raw)}",
        f"Inference-Header-Content-Length: {len(head)}",
    )
    return "\r\n".join((*lines, "", "")).encode() + head + raw


def answer(sock: socket.socket, slowly: bool = False) -> np.ndarray:
    """Reads one answer's tensor and not a byte more."""
    head = bytearray()
    while not head.endswith(b"\r\n\r\n"):
        head += sock.recv(1)
    lines = dict(line.lower().split(": ") for line in head.decode().strip().split("\r\n")[1:])
    assert head.startswith(b"HTTP/1.1 200 "), head
    size, skip = int(lines["content-length"]), int(lines["inference-header-content-length"])
    body = bytearray()
    while len(body) < size:
        part = sock.recv(min(size - len(body), 1 << 16))
        assert part, "the server closed the connection"
        body += part
        if slowly and len(body) < 1 << 19:
            time.sleep(0.01)
    return np.frombuffer(body[skip:], np.float32).reshape(-1, WIDTH)


def some(seed: int, rows: int = ROWS) -> np.ndarray:
    return np.random.default_rng(seed).random((rows, WIDTH), np.float32)


def test_several_at_once_come_back_in_order_however_slowly_they_are_read(server: Server) -> None:
    sent = [some(seed, rows) for seed, rows in enumerate((ROWS, ROWS, 3, ROWS, ROWS))]
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as sock:
        for _ in range(2):  # the second time there is room in shared memory for the answers
            for values in sent:
                sock.sendall(request(values))
            for values in sent:
                np.testing.assert_array_equal(answer(sock, slowly=True), values)


def test_many_connections_do_not_get_each_others(server: Server) -> None:
    socks = [socket.create_connection(("127.0.0.1", server.port), timeout=30) for _ in range(6)]
    try:
        for turn in range(4):
            for i, sock in enumerate(socks):
                sock.sendall(request(some(10 * turn + i)))
            for i, sock in enumerate(socks):
                np.testing.assert_array_equal(answer(sock), some(10 * turn + i))
    finally:
        for sock in socks:
            sock.close()


def test_a_body_in_small_pieces_arrives_whole(server: Server) -> None:
    values = some(7)
    raw = request(values)
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as sock:
        for begin in range(0, len(raw), 100_000):
            sock.sendall(raw[begin : begin + 100_000])
            time.sleep(0.01)
        np.testing.assert_array_equal(answer(sock), values)
        sock.sendall(request(some(8, 2)))  # a small one after it on the same connection
        np.testing.assert_array_equal(answer(sock), some(8, 2))


def test_who_leaves_in_the_middle_leaves_nothing_behind(server: Server) -> None:
    for _ in range(3):
        sock = socket.create_connection(("127.0.0.1", server.port), timeout=30)
        sock.sendall(request(some(1))[:600_000])
        sock.close()
        sock = socket.create_connection(("127.0.0.1", server.port), timeout=30)
        sock.sendall(request(some(1)) * 2)  # and one who reads none of the answers
        sock.close()
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as sock:
        sock.sendall(request(some(2)))
        np.testing.assert_array_equal(answer(sock), some(2))
