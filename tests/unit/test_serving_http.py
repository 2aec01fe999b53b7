"""A connection of the HTTP door: however its bytes arrive, the requests are those that were sent."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from portolan.serving.arena import LARGE, Arena
from portolan.serving.calls import Refusal
from portolan.serving.door import Door
from portolan.serving.http import Connection
from portolan.serving.request import Request
from portolan.serving.responses import Response

#: Path, whole body's bytes and those of its JSON part.
Sent = tuple[str, int, int]
REQUESTS = st.tuples(
    st.sampled_from(["/a", "/other"]),
    st.sampled_from([0, 7, 300, LARGE - 1, LARGE, LARGE + 5000, 3 * LARGE]),
    st.sampled_from([0, 5, 64]),
)


class Client:
    """A transport without a socket, and what a kernel with these bytes in it would do."""

    def __init__(self, door: Door) -> None:
        self.connection = Connection(door)
        self.answers = b""
        self.closed = False
        self.connection.connection_made(self)  # type: ignore[arg-type]

    def get_extra_info(self, key: str) -> Any:
        return True if key == "sslcontext" else None  # then nothing is sent past the transport

    def is_closing(self) -> bool:
        return self.closed

    def get_write_buffer_size(self) -> int:
        return 0

    def write(self, data: bytes) -> None:
        self.answers += data

    def can_write_eof(self) -> bool:
        return False

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...

    def close(self) -> None:
        self.closed = True

    def deliver(self, data: bytes) -> None:
        """Hands over what has come, as often as the loop asks for more."""
        while data:
            room = self.connection.get_buffer(-1)
            count = min(len(room), len(data))
            room[:count] = data[:count]
            self.connection.buffer_updated(count)
            data = data[count:]


def message(path: str, size: int, json: int, seed: int) -> tuple[bytes, bytes]:
    """A request as bytes, and its body."""
    body = np.random.default_rng(seed).bytes(size)
    lines = (
        f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {size}\r\nInference-Header-Content-Length: {json}\r\n\r\n"
    )
    return lines.encode() + body, body


async def receive(pieces: list[bytes], idle: bool) -> tuple[list[Any], Arena]:
    """What is routed when these bytes come one piece after another."""
    arena, found = Arena(1 << 24), []

    def route(request: Request) -> None:
        if request.place >= 0:
            assert (request.place + request.head.json) % 64 == 0
            assert bytes(arena.view[request.place : request.place + len(request.body)]) == bytes(request.body)
        found.append((request.head.path.decode(), bytes(request.body)))
        request.answer(Response(200))

    door = Door(route, arena)
    client = Client(door)
    for turn, piece in enumerate(pieces):
        if idle:  # the loop asked for room and nothing came; then a second passes
            client.connection.get_buffer(-1)
            client.connection.check(door.loop.time())
        client.deliver(piece)
        if turn % 3:
            await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert client.answers.count(b"HTTP/1.1 200") == len(found)
    client.connection.connection_lost(None)
    return found, arena


def cut(sent: list[tuple[Sent, list[int]]]) -> list[bytes]:
    """The requests' bytes, cut at distances from where each begins, where its body begins and where it ends."""
    data, spots = b"", {0}
    for seed, (one, distances) in enumerate(sent):
        raw = message(*one, seed)[0]
        begin, body, end = len(data), len(data) + len(raw) - one[1], len(data) + len(raw)
        spots.update(at + distance for at in (begin, body, end) for distance in distances)
        data += raw
    places = sorted(spot for spot in spots if 0 <= spot < len(data))
    return [data[a:b] for a, b in zip(places, [*places[1:], len(data)], strict=True)]


@settings(max_examples=300, deadline=None)
@given(
    runs=st.lists(
        st.tuples(REQUESTS, st.lists(st.lists(st.sampled_from([0, 0, 1, -1, 30, 70_000]), max_size=2), min_size=1)),
        min_size=1,
        max_size=4,
    ),
    idle=st.booleans(),
)
def test_requests_arrive_as_they_were_sent(runs: list[tuple[Sent, list[list[int]]]], idle: bool) -> None:
    sent = [(one, distances) for one, times in runs for distances in times[:4]]
    found, arena = asyncio.run(receive(cut(sent), idle))
    assert found == [(path, message(path, size, json, i)[1]) for i, ((path, size, json), _) in enumerate(sent)]
    assert arena.used == 0
    arena.close()


def test_the_same_head_again_is_received_with_its_body_in_one_go() -> None:
    async def rooms() -> list[int]:
        arena = Arena(1 << 24)
        client = Client(Door(lambda request: request.answer(Response(200)), arena))
        found = []
        for seed in range(4):
            data = message("/a", 3 * LARGE, 64, seed)[0]
            found.append(len(client.connection.get_buffer(-1)) - len(data))
            client.deliver(data)
            await asyncio.sleep(0)
        client.connection.get_buffer(-1)
        assert arena.used, "there is room for the fifth"
        client.connection.check(0.0)
        assert not arena.used, "which nobody sent"
        client.connection.get_buffer(-1)
        client.connection.connection_lost(None)
        assert not arena.used
        return found

    first, second, *others = asyncio.run(rooms())
    assert max(first, second) < 0, "the head has to be known first"
    assert others == [1, 1]  # one byte more than comes, so that the kernel is not asked again


def test_a_header_that_reads_like_the_expected_head_stays_a_header() -> None:
    async def paths() -> list[bytes]:
        arena, found = Arena(1 << 20), []

        def route(request: Request) -> None:
            found.append(request.head.path)
            request.answer(Response(200))

        client = Client(Door(route, arena))
        large = message("/a", 3 * LARGE, 64, 0)[0]
        for _ in range(2):
            client.deliver(large)
            await asyncio.sleep(0)
        taken = arena.take(arena.size)  # no room can be made for what is expected
        assert taken is not None
        client.deliver(b"POST /b HTTP/1.1\r\nX-Like: ")
        arena.give(taken)
        client.deliver(large)
        await asyncio.sleep(0)
        return found

    assert asyncio.run(paths()) == [b"/a", b"/a", b"/b"]


def test_what_is_refused_before_its_body_is_noted_with_its_own_path() -> None:
    async def noted() -> list[tuple[bytes, int]]:
        door, found = Door(lambda request: request.answer(Response(200)), Arena(1 << 20)), []
        door.noted = lambda request, response: found.append((request.head.path, response.status))
        client = Client(door)
        for path in ("/a", "/other", "/a", "/other"):  # both heads are known the second time, and pass the parser by
            client.deliver(message(path, 7, 0, 0)[0])

        def full(request: Request) -> None:
            raise Refusal("too_many", "enough", 1.0)

        door.admit = full
        client.deliver(message("/a", 7, 0, 0)[0])
        return found

    ok = [(path, 200) for path in (b"/a", b"/other", b"/a", b"/other")]
    assert asyncio.run(noted()) == [*ok, (b"/a", 429)]
