"""Batches as bytes: what goes to a replica, and how its outputs are divided among the calls."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from portolan.core.signature import Signature, TensorSpec
from portolan.serving import wire
from portolan.serving.arena import LARGE, Arena
from portolan.serving.batches import Division, Divisions, Packer
from portolan.serving.calls import Call, Tensor
from portolan.serving.checks import Checker
from portolan.serving.ticket import Batch, Ticket

OUT = Signature((), (TensorSpec("y", "float32", ("n", 2)), TensorSpec("t", "string", ("n",))))


def signature(width: int | str = "w") -> Signature:
    return Signature((TensorSpec("x", "float32", ("n", width)),), (TensorSpec("y", "float32", ("n", width)),))


def batch(*arrays: np.ndarray) -> Batch:
    checker = Checker(signature(), batches=True)
    tickets = []
    for array in arrays:
        call = Call("m", None, [Tensor("x", "FP32", array.shape, array.tobytes())])
        tickets.append(Ticket(call, lambda result: None, checker.check(call), 0.0, 1.0))
    return Batch(tickets, 0.0)


def sent(head: bytes, body: list[Any]) -> wire.Frame:
    """The frame as a replica reads it."""
    reader = wire.Reader()
    raw = b"".join(bytes(piece) for piece in wire.frame(head, body, 0.5))
    assert len(raw) % wire.ALIGN == 0
    frame = None
    while raw:
        space = reader.space()
        count = min(len(space), len(raw))
        space[:count] = raw[:count]
        raw = raw[count:]
        reader.feed(count)
        frame = reader.next()
    assert frame is not None
    return frame


class TestPacker:
    def test_small_tensors_are_joined_in_the_frame(self) -> None:
        arena = Arena(1 << 20)
        one, two = np.float32([[1, 2]]), np.float32([[3, 4], [5, 6]])
        frame = sent(*Packer(signature(), arena, batches=True).pack(batch(one, two)))
        assert frame.header == ["run", [["x", "float32", [3, 2], 24, None]], False, 0]
        assert np.frombuffer(frame.body[:24], np.float32).tolist() == [1, 2, 3, 4, 5, 6]
        assert (frame.seconds, arena.used) == (0.5, 0)

    def test_large_tensors_are_named_by_their_places(self) -> None:
        arena = Arena(1 << 22)
        packer, wide = Packer(signature(), arena, batches=True), np.arange(LARGE, dtype=np.float32).reshape(1, -1)
        for factor in (1, 2):  # the second time the header is the remembered one, and the places are others
            made = batch(wide * factor, wide * (factor + 1))
            frame = sent(*packer.pack(made))
            assert frame.header == ["run", [["x", "float32", [2, LARGE], 8 * LARGE, 2]], False, 0]
            spots = wire.read_places(frame.body, 2)
            assert [place for place, _ in spots] == made.places
            assert len(frame.body) == wire.padded(32)
            for i, (place, size) in enumerate(spots):
                there = np.frombuffer(arena.view[place : place + size], np.float32)
                assert there.tolist() == (wide[0] * (factor + i)).tolist()

    def test_there_is_room_for_outputs_once_their_size_is_known(self) -> None:
        arena = Arena(1 << 20)
        packer, made = Packer(signature(), arena, batches=True), batch(np.float32([[1, 2]]))
        packer.learn(made, LARGE - 1)
        assert sent(*packer.pack(made)).header[2] is False
        packer.learn(made, LARGE)
        frame = sent(*packer.pack(made))
        assert frame.header[2] is True
        assert made.room is not None
        assert (made.room[1], made.places) == (LARGE, [made.room[0]])
        (spot,) = wire.read_places(frame.body, 1)
        assert spot == made.room
        taken = wire.padded(16)
        assert np.frombuffer(frame.body[taken : taken + 8], np.float32).tolist() == [1, 2]

    def test_outputs_are_taken_from_where_they_are_said_to_be(self) -> None:
        arena = Arena(1 << 20)
        packer, made = Packer(signature(), arena, batches=True), batch(np.float32([[1, 2]]))
        inline = wire.Frame(["done", [], False], memoryview(b"12345678"), 0.0)
        assert bytes(packer.outputs(made, inline, 8)) == b"12345678"
        shared = wire.Frame(["done", [], True], memoryview(b""), 0.0)
        with pytest.raises(ValueError, match="not where"):
            packer.outputs(made, shared, 8)
        packer.learn(made, LARGE)
        packer.pack(made)
        assert made.room is not None
        arena.view[made.room[0] : made.room[0] + 4] = b"abcd"
        assert bytes(packer.outputs(made, shared, 4)) == b"abcd"
        with pytest.raises(ValueError, match="not where"):
            packer.outputs(made, shared, LARGE + 1)

    def test_without_memory_everything_goes_through_the_socket(self) -> None:
        arena = Arena(1 << 16)
        assert arena.take(1) is not None
        packer, made = Packer(signature(), arena, batches=True), batch(np.zeros((1, LARGE), np.float32))
        packer.learn(made, LARGE)
        frame = sent(*packer.pack(made))
        assert (frame.header[1][0][4], frame.header[2], made.places) == (None, False, [])
        assert len(frame.body) == 4 * LARGE


class TestDivision:
    BLOB = memoryview(np.arange(6, dtype=np.float32).tobytes().ljust(wire.ALIGN, b"\0") + b"abbccc")
    LISTED = (["y", "FP32", [3, 2], 24, None], ["t", "BYTES", [3], 6, [1, 3, 6]])

    def test_every_call_gets_its_rows(self) -> None:
        division = Division(list(self.LISTED), OUT, 3)
        first, last = division.share(1, []).tensors(self.BLOB, 0), division.share(2, []).tensors(self.BLOB, 1)
        assert [(t.name, t.datatype, t.shape) for t in last] == [("y", "FP32", (2, 2)), ("t", "BYTES", (2,))]
        assert [bytes(t.data) for t in first] == [np.float32([0, 1]).tobytes(), b"a"]
        assert [bytes(t.data) for t in last] == [np.float32([2, 3, 4, 5]).tobytes(), b"bbccc"]

    def test_what_is_wanted_comes_in_that_order(self) -> None:
        division = Division(list(self.LISTED), OUT, 3)
        assert [t.name for t in division.share(1, ["t", "y"]).tensors(self.BLOB, 0)] == ["t", "y"]
        assert [t.name for t in division.share(1, ["t"]).tensors(self.BLOB, 0)] == ["t"]

    def test_answers_have_a_form_where_rows_have_one_size(self) -> None:
        division = Division(list(self.LISTED), OUT, 3)
        assert division.share(1, ["y"]).form is division.share(1, ["y"]).form is not None
        assert division.share(1, ["y"]).form is not division.share(2, ["y"]).form
        assert division.share(1, []).form is None

    def test_a_call_that_ran_in_turn_has_no_axis_for_it(self) -> None:
        division = Division(list(self.LISTED), OUT, 3, batches=False)
        (y, text) = division.share(1, []).tensors(self.BLOB, 2)
        assert (y.shape, bytes(y.data)) == ((2,), np.float32([4, 5]).tobytes())
        assert (text.shape, bytes(text.data)) == ((), b"ccc")

    @pytest.mark.parametrize(
        ("listed", "said"),
        [
            ([["y", "FP32", [2, 2], 16, None], LISTED[1]], "`y` has shape .2, 2. for a batch of 3"),
            ([["y", "FP32", [3, 2], 20, None], LISTED[1]], "`y` has 20 bytes"),
            ([LISTED[0]], "`t` is missing"),
        ],
    )
    def test_outputs_that_are_not_the_signatures(self, listed: list[Any], said: str) -> None:
        with pytest.raises(ValueError, match=said):
            Division(listed, OUT, 3)

    def test_the_same_header_is_divided_once(self) -> None:
        divisions, header = Divisions(OUT), ["done", list(self.LISTED), False]
        assert divisions.of(header, 3) is divisions.of(header, 3)
        assert divisions.of(list(header), 3) is not divisions.of(header, 3)
