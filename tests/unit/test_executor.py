"""A replica's arrays: what a batch's frame says is what the model is given, wherever the bytes lie."""

from __future__ import annotations

import mmap
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from portolan.core.signature import Signature, TensorSpec
from portolan.serving import wire
from portolan.serving.arena import LARGE, Arena
from portolan.serving.batches import Packer
from portolan.serving.calls import Call, Tensor
from portolan.serving.checks import Checker
from portolan.serving.executor import Feeds
from portolan.serving.ticket import Batch, Ticket

SIGNATURE = Signature(
    (TensorSpec("x", "float32", ("n", "w")), TensorSpec("i", "int64", ("n",)), TensorSpec("t", "string", ("n", 2))),
    (TensorSpec("y", "float32", ("n", "w")),),
)


def call(rows: int, width: int, seed: int) -> tuple[Call, dict[str, Any]]:
    rng = np.random.default_rng(seed)
    arrays: dict[str, Any] = {
        "x": rng.standard_normal((rows, width)).astype(np.float32),
        "i": rng.integers(-9, 9, rows),
        "t": [["", "é"], ["abc", "d"]][seed % 2 :][:1] * rows,
    }
    text = b"".join(len(w.encode()).to_bytes(4, "little") + w.encode() for row in arrays["t"] for w in row)
    tensors = [
        Tensor("x", "FP32", (rows, width), arrays["x"].tobytes()),
        Tensor("i", "INT64", (rows,), arrays["i"].tobytes()),
        Tensor("t", "BYTES", (rows, 2), text),
    ]
    return Call("m", None, tensors), arrays


def frame_of(packer: Packer, batch: Batch) -> wire.Frame:
    raw = b"".join(bytes(piece) for piece in wire.frame(*packer.pack(batch)))
    reader = wire.Reader(len(raw))
    reader.space()[: len(raw)] = raw
    reader.feed(len(raw))
    frame = reader.next()
    assert frame is not None
    return frame


@given(
    rows=st.lists(st.integers(1, 3), min_size=1, max_size=3),
    width=st.sampled_from([0, 1, 5, LARGE // 4, LARGE // 4 + 3]),
    learned=st.booleans(),
)
def test_arrays_are_those_that_were_sent(rows: list[int], width: int, learned: bool) -> None:
    arena, checker = Arena(1 << 23), Checker(SIGNATURE, batches=True)
    packer, tickets, sent = Packer(SIGNATURE, arena, batches=True), [], []
    for seed, count in enumerate(rows):
        made, arrays = call(count, width, seed)
        tickets.append(Ticket(made, lambda result: None, checker.check(made), 0.0, 1.0))
        sent.append(arrays)
    batch = Batch(tickets, 0.0)
    if learned:
        packer.learn(batch, LARGE)
    frame = frame_of(packer, batch)
    with mmap.mmap(arena.fd, arena.size) as shared:
        feeds, room = Feeds(*frame.header[1:]).arrays(shared, frame.body)
        for name in ("x", "i"):
            expected = np.concatenate([arrays[name] for arrays in sent])
            assert feeds[name].dtype == expected.dtype
            np.testing.assert_array_equal(feeds[name], expected)
        assert feeds["t"].tolist() == [row for arrays in sent for row in arrays["t"]]
        assert room == (batch.room if learned else None)
        feeds.clear()


@given(
    rows=st.integers(1, 2),
    times=st.integers(1, 4),
    width=st.sampled_from([0, 1, 5, LARGE // 4, LARGE // 4 + 3]),
    learned=st.booleans(),
)
def test_calls_that_run_in_turn_have_what_each_sent(rows: int, times: int, width: int, learned: bool) -> None:
    arena, checker = Arena(1 << 23), Checker(SIGNATURE, batches=False)
    packer, calls = Packer(SIGNATURE, arena, batches=False), [call(rows, width, seed) for seed in range(times)]
    batch = Batch([Ticket(made, lambda result: None, checker.check(made), 0.0, 1.0) for made, _ in calls], 0.0)
    if learned:
        packer.learn(batch, LARGE)
    frame = frame_of(packer, batch)
    with mmap.mmap(arena.fd, arena.size) as shared:
        feeds, room = Feeds(*frame.header[1:]).calls(shared, frame.body)
        assert len(feeds) == times
        for feed, (_, sent) in zip(feeds, calls, strict=True):
            for name in ("x", "i"):
                assert feed[name].dtype == sent[name].dtype
                np.testing.assert_array_equal(feed[name], sent[name])
            assert feed["t"].tolist() == sent["t"]
        assert room == (batch.room if learned else None)
        feed.clear()
        feeds.clear()


def test_a_piece_that_no_runtime_could_read_is_copied() -> None:
    arena = Arena(1 << 17)
    arena.view[3:11] = np.float32([1.5, 2.5]).tobytes()
    feeds = Feeds([["x", "float32", [1, 2], 8, 1]], False)
    with mmap.mmap(arena.fd, arena.size) as shared:
        arrays, room = feeds.arrays(shared, memoryview(wire.places([(3, 8)])))
        assert arrays["x"].flags.aligned
        assert (arrays["x"].tolist(), room) == ([[1.5, 2.5]], None)
        arrays.clear()


def test_text_is_not_looked_for_in_shared_memory() -> None:
    arena = Arena(1 << 17)
    feeds = Feeds([["t", "string", [1], 8, 1]], False)
    with mmap.mmap(arena.fd, arena.size) as shared, pytest.raises(ValueError, match="`t`"):
        feeds.arrays(shared, memoryview(wire.places([(0, 8)])))


@given(sizes=st.lists(st.integers(1, 9), min_size=1, max_size=6), data=st.data())
def test_what_was_not_sent_stays_in_order(sizes: list[int], data: st.DataObject) -> None:
    whole = bytes(range(sum(sizes)))
    ends = np.cumsum([0, *sizes])
    left = [memoryview(whole)[a:b] for a, b in pairwise(ends)]
    sent = data.draw(st.integers(0, len(whole)))
    wire.drop_sent(left, sent)
    assert b"".join(left) == whole[sent:]
    assert all(left)
