"""Requests that are wrong in every way: each gets an error of the protocol's shape, and the server goes on."""

from __future__ import annotations

import gzip
import http.client
import json
import random
import socket
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from portolan.serving import protocol
from portolan.serving.calls import Refusal
from support.serving import Server, identity, pack, serving

PATH = "/v2/models/identity/infer"
CALLS = 10_000


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("identity")
    bundle = pack(identity(folder / "identity.onnx"), folder / "identity.portolan")
    with serving(bundle) as running:
        before = running.children()
        yield running
        assert running.children() == before, "a process ended"


def good(binary: bool = True, **extra: Any) -> tuple[bytes, bytes]:
    """Head and tensors of a request that would be answered."""
    x = np.arange(16, dtype=np.float32)
    item: dict[str, Any] = {"name": "x", "shape": [1, 16], "datatype": "FP32"}
    item |= {"parameters": {"binary_data_size": 64}} if binary else {"data": x.tolist()}
    return json.dumps({"inputs": [item], **extra}).encode(), x.tobytes() if binary else b""


#: Wrong values by where they go: in the request, in its input, in its parameters, in its outputs.
SHAPES = [[2, 16], [16], [1, 17], [1, -16], [-1, -16], [2**40, 2**40], [], [0, 16], [1] * 70, "x", [1.5, 16], None]
DATATYPES = ["FP64", "fp32", "BYTES", "INT8", "BF16", "", "FP999", None, 5]
NAMES = ["y", "", "X", "x" * 5000, None, 3]
SIZES = [0, 1, 63, 65, -1, 2**62, "64", None, 1.0e30]
DATA = [[1] * 15, [1] * 17, [], None, "abc", [[1] * 15], [{"a": 1}] * 16, ["x"] * 16, [[1], 2] * 8, [[[1] * 16]]]
INPUTS = [[], None, {}, "x", [1], 5, [[]], {"a": []}, False]
OUTPUTS = [
    [{"name": "no"}],
    [{"name": "y"}, {"name": "y"}],
    [1],
    "y",
    [{"name": "y", "parameters": {"classification": 3}}],
]
PARAMETERS: list[Any] = [
    *({key: value} for key in ("timeout", "priority") for value in (-1, 1.5, "x", [], {}, -(2**70), None, True)),
    *({"binary_data_output": value} for value in (1, "yes", None, [])),
    {"sequence_id": 4}, {"sequence_start": True}, [], "x", 7,
]  # fmt: skip
LENGTHS = ["5", "99999999", "-1", "x", "1e3", "9" * 40, "0x10"]
NONSENSE = [
    b"", b"[]", b"null", b"{" * 3000, b"[" * 100_000, b'{"inputs":' + b"[" * 5000, b"\xff\xfe", bytes(range(256)),
    b"1e999", b'"x"', b'{"inputs": [{}]}', b'{"inputs": [{"name": "\xff"}]}',
]  # fmt: skip


def mutated(rng: random.Random) -> tuple[bytes, dict[str, str]]:
    """A body and headers that are wrong somewhere."""
    binary = rng.random() < 0.7
    head, raw = good(binary)
    request = json.loads(head)
    item, length = request["inputs"][0], None
    match rng.randrange(13):
        case 0:
            item["shape"] = rng.choice(SHAPES)
        case 1:
            item["datatype"] = rng.choice(DATATYPES)
        case 2:
            item["name"] = rng.choice(NAMES)
        case 3 if binary:
            item["parameters"]["binary_data_size"] = rng.choice(SIZES)
        case 3:
            item["data"] = rng.choice(DATA)
        case 4:
            raw = raw[: rng.randrange(len(raw))] if binary else b"left over"
        case 5:
            raw += b"more"
        case 6:
            request["inputs"] = rng.choice([*INPUTS, [item, item], [item, {**item, "name": "z"}]])
        case 7:
            del item[rng.choice(list(item))]
        case 8:
            request["outputs"] = rng.choice(OUTPUTS)
        case 9:
            request["parameters"] = rng.choice(PARAMETERS)
        case 10:
            length = rng.choice(LENGTHS)
        case 11:
            item["parameters"] = {"shared_memory_region": "r", "shared_memory_byte_size": 64}
        case _:
            return rng.choice(NONSENSE), {}
    body = json.dumps(request).encode()
    if binary and length is None:
        length = str(len(body))
    return body + raw, {} if length is None else {"Inference-Header-Content-Length": length}


@pytest.mark.timeout(280)
def test_ten_thousand_wrong_requests_are_refused_each_with_its_reason(server: Server) -> None:
    rng = random.Random(11)
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    seen: dict[int, int] = {}
    for _ in range(CALLS):
        body, headers = mutated(rng)
        connection.request("POST", PATH, body, headers)
        answer = connection.getresponse()
        raw = answer.read()
        seen[answer.status] = seen.get(answer.status, 0) + 1
        assert 400 <= answer.status < 500, (answer.status, raw, body[:300], headers)
        assert list(json.loads(raw)) == ["error"]
    connection.close()
    assert sum(seen.values()) == CALLS
    answered(server)


def answered(server: Server) -> None:
    """The server still does what it is for."""
    head, raw = good()
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    connection.request("POST", PATH, head + raw, {"Inference-Header-Content-Length": str(len(head))})
    answer = connection.getresponse()
    assert answer.status == 200
    assert json.loads(answer.read())["outputs"][0]["data"] == list(range(16))
    connection.close()


def exchange(server: Server, raw: bytes, seconds: float = 20.0) -> bytes:
    """Sends bytes; gives what comes back until the other side closes, or nothing comes for a while."""
    got = b""
    with socket.create_connection(("127.0.0.1", server.port), timeout=seconds) as sock:
        try:
            sock.sendall(raw)
            while part := sock.recv(65536):
                got += part
                if b"\r\n\r\n" in got and b"Connection: close" not in got:
                    break
        except OSError:
            pass
    return got


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        (b"GARBAGE\r\n\r\n", 400),
        (b"GET / HTTP/9.9\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
        (b"GET /v2 HTTP/1.1\r\nHost: x\r\nX-Big: " + b"a" * 100_000 + b"\r\n\r\n", 431),
        (b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\n\r\n", 431),
        (b"GET /v2 HTTP/1.1\r\n" + b"".join(b"X-%d: 1\r\n" % i for i in range(5000)) + b"\r\n", 431),
        (b"POST /v2/models/identity/infer HTTP/1.1\r\nContent-Length: 99999999999\r\n\r\n", 413),
        (b"POST /v2/models/identity/infer HTTP/1.1\r\nContent-Length: x\r\n\r\n", 400),
        (b"POST /v2/models/identity/infer HTTP/1.1\r\nContent-Length: -5\r\n\r\n", 400),
        (b"POST /v2/models/identity/infer HTTP/1.1\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n", 400),
        (b"POST /v2 HTTP/1.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        (b"POST /v2/models/identity/infer HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n", 400),
        (b"CONNECT other:443 HTTP/1.1\r\n\r\n", 404),
        (b"DELETE /v2 HTTP/1.1\r\n\r\n", 405),
        (b"PUT /v2/models/identity/infer HTTP/1.1\r\nContent-Length: 0\r\n\r\n", 405),
        (b"GET /v2/models/%ff HTTP/1.1\r\n\r\n", 404),
        (b"GET /v2/models/../../etc/passwd HTTP/1.1\r\n\r\n", 404),
    ],
)
def test_broken_http_is_refused(server: Server, raw: bytes, status: int) -> None:
    got = exchange(server, raw)
    head, _, body = got.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % status), got[:200]
    assert list(json.loads(body)) == ["error"]
    answered(server)


def test_a_chunked_body_beyond_the_bound_is_refused_while_it_comes(server: Server) -> None:
    head = b"POST /v2/models/identity/infer HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"
    chunk = b"100000\r\n" + bytes(0x100000) + b"\r\n"
    got = exchange(server, head + chunk * 70)
    assert got.startswith(b"HTTP/1.1 413 ")


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
def test_a_bomb_is_refused_before_it_is_unpacked(server: Server, coding: str) -> None:
    zeros = bytes(200 * 2**20)
    packed = gzip.compress(zeros, 9) if coding == "gzip" else zlib.compress(zeros, 9)
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    connection.request("POST", PATH, packed, {"Content-Encoding": coding})
    answer = connection.getresponse()
    assert answer.status == 413
    assert "uncompressed" in json.loads(answer.read())["error"]
    assert memory(server) < 400 * 2**20


@pytest.mark.parametrize(
    ("body", "coding"),
    [
        (b"not gzip", "gzip"),
        (gzip.compress(b"{}", mtime=0)[:-3], "gzip"),
        (gzip.compress(b"{}", mtime=0) + b"more", "gzip"),
        (b"{}", "br"),
        (b"", "gzip"),
    ],
)
def test_broken_compression_is_refused(server: Server, body: bytes, coding: str) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    connection.request("POST", PATH, body, {"Content-Encoding": coding, "Content-Length": str(len(body))})
    assert connection.getresponse().status == 400


def memory(server: Server) -> int:
    """Resident bytes of the front and the replicas."""
    pids = [pid for kind in server.children().values() for pid in kind]
    return sum(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096 for pid in pids)


def test_slow_clients_are_sent_away_and_hold_up_nobody(server: Server) -> None:
    slow = [socket.create_connection(("127.0.0.1", server.port), timeout=30) for _ in range(50)]
    for i, sock in enumerate(slow):
        sock.sendall(
            b"POST /v2/models/identity/infer HTTP/1.1\r\nContent-Length: 500000\r\n" + (b"\r\n" if i % 2 else b"")
        )
    answered(server)
    end = time.monotonic() + 11
    while time.monotonic() < end:
        for i, sock in enumerate(slow):
            try:
                sock.send(b" " if i % 2 else b"X")
            except OSError:
                continue
        time.sleep(1.0)
    for sock in slow:
        sock.settimeout(10)
        got = b""
        try:
            while part := sock.recv(65536):
                got += part
        except ConnectionResetError:  # the rest of what it sent came after the end
            pass
        assert got == b"" or got.startswith(b"HTTP/1.1 408 ")
        sock.close()
    answered(server)


def test_a_wish_to_upgrade_is_ignored(server: Server) -> None:
    one = b"GET /v2 HTTP/1.1\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AA\r\n\r\n"
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as sock:
        for raw in (one, one + one):
            got = b""
            sock.sendall(raw)
            while got.count(b"portolan") < raw.count(b"GET"):
                got += sock.recv(65536)
            assert got.count(b"HTTP/1.1 200 OK") == raw.count(b"GET")


def test_pipelined_requests_are_answered_in_order(server: Server) -> None:
    one = b"GET /v2/models/identity/versions/%d HTTP/1.1\r\n\r\n"
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as sock:
        sock.sendall(b"".join(one % i for i in range(2, 300)))
        got = b""
        while got.count(b"HTTP/1.1") < 298 or not got.endswith(b"}"):
            got += sock.recv(65536)
    places = [got.index(b"no version `%d`" % i) for i in range(2, 300)]
    assert places == sorted(places)


@settings(max_examples=300)
@given(st.binary(max_size=300), st.one_of(st.none(), st.integers(0, 400)))
def test_whatever_bytes_come_the_codec_refuses_or_reads_them(body: bytes, header: int | None) -> None:
    try:
        call, _ = protocol.decode("m", None, body, header)
    except Refusal as refusal:
        kind = refusal.kind
    else:
        kind = "invalid" if isinstance(call.inputs, list) else "failed"
    assert kind == "invalid"
