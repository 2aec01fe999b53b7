"""Nothing leaks: the server's memory is flat over two hundred thousand requests, right ones and wrong ones."""

from __future__ import annotations

import json
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from support.serving import Server, identity, pack, serving

TOGETHER, CALLERS = 64, 8
WARM, REQUESTS = 40_000, 200_000
#: Bytes that may come and go: arenas of malloc, a heap that has just grown.
ROOM = 6 * 2**20


def request(data: list[float]) -> bytes:
    body = json.dumps({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, len(data)], "data": data}]}).encode()
    head = f"POST /v2/models/identity/infer HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def sent(server: Server, count: int, caller: int) -> tuple[int, int]:
    """Sends so many requests, TOGETHER at a time; how many were answered, and how many refused."""
    answered = refused = 0
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as sock, sock.makefile("rb") as reader:
        for turn in range(count // TOGETHER):
            # Other numbers each time, so that nothing is remembered, and one request in eight that is wrong.
            batch = [request([float(caller), turn + i / 64] * (8 if i % 8 else 7)) for i in range(TOGETHER)]
            sock.sendall(b"".join(batch))
            for _ in batch:
                status = reader.readline().split()[1]
                length = 0
                while (line := reader.readline().strip()) != b"":
                    name, _, value = line.partition(b":")
                    length = int(value) if name.lower() == b"content-length" else length
                reader.read(length)
                answered += status == b"200"
                refused += status == b"400"
    return answered, refused


def load(server: Server, count: int) -> None:
    with ThreadPoolExecutor(CALLERS) as pool:
        found = list(pool.map(lambda i: sent(server, count // CALLERS, i), range(CALLERS)))
    whole = count // CALLERS // TOGETHER * TOGETHER * CALLERS
    assert sum(refused for _, refused in found) == whole // 8
    assert sum(answered for answered, _ in found) == whole - whole // 8


def resident(server: Server) -> dict[str, int]:
    found = {}
    for kind, pids in server.children().items():
        assert len(pids) == 1, kind
        pages = int(Path(f"/proc/{pids[0]}/statm").read_text().split()[1])
        found[kind] = pages * 4096
    return found


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_memory_is_flat_over_two_hundred_thousand_requests(tmp_path: Path) -> None:
    bundle = pack(identity(tmp_path / "identity.onnx"), tmp_path / "identity.portolan")
    with serving(bundle) as server:
        load(server, WARM)
        before = resident(server)
        load(server, REQUESTS)
        after = resident(server)
    grown = {kind: after[kind] - before[kind] for kind in before}
    assert max(grown.values()) < ROOM, grown
