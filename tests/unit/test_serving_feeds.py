"""What a replica reads of a frame: never more than the frame says is there, for what lies behind is somebody else's."""

from __future__ import annotations

import mmap

import numpy as np
import pytest

from portolan.serving import wire
from portolan.serving.executor import Feeds

VALUES = np.arange(8, dtype=np.float32)


@pytest.fixture
def shared() -> mmap.mmap:
    memory = mmap.mmap(-1, 4096)
    memory[64:96] = VALUES.tobytes()
    return memory


@pytest.mark.parametrize("pieces", [[(64, 32)], [(64, 16), (80, 16)]])
def test_pieces_in_shared_memory_are_joined(pieces: list[wire.Place], shared: mmap.mmap) -> None:
    feeds = Feeds([["x", "float32", [2, 4], 32, len(pieces)]], False)
    arrays, room = feeds.arrays(shared, memoryview(wire.places(pieces)))
    np.testing.assert_array_equal(arrays["x"], VALUES.reshape(2, 4))
    assert room is None


@pytest.mark.parametrize("pieces", [[(64, 16)], [(64, 48)], [(64, 16), (80, 32)]])
def test_pieces_of_other_sizes_are_refused(pieces: list[wire.Place], shared: mmap.mmap) -> None:
    feeds = Feeds([["x", "float32", [2, 4], 32, len(pieces)]], False)
    with pytest.raises(ValueError, match="do not have its 32 bytes"):
        feeds.arrays(shared, memoryview(wire.places(pieces)))


def test_calls_that_run_in_turn_have_a_piece_each(shared: mmap.mmap) -> None:
    feeds = Feeds([["x", "float32", [4], 32, 2]], False, 2)
    (one, other), _ = feeds.calls(shared, memoryview(wire.places([(80, 16), (64, 16)])))
    np.testing.assert_array_equal([other["x"], one["x"]], VALUES.reshape(2, 4))


@pytest.mark.parametrize("pieces", [[(64, 32)], [(64, 16), (80, 8)], [(64, 16), (80, 32)], [(64, 8), (72, 24)]])
def test_calls_that_run_in_turn_with_pieces_of_other_sizes_are_refused(
    pieces: list[wire.Place], shared: mmap.mmap
) -> None:
    feeds = Feeds([["x", "float32", [4], 32, len(pieces)]], False, 2)
    with pytest.raises(ValueError, match=r"do not have its 16 bytes|1 pieces for 2 calls"):
        feeds.calls(shared, memoryview(wire.places(pieces)))


@pytest.mark.parametrize("parts", [None, 1])
def test_a_shape_of_another_size_is_refused(parts: int | None) -> None:
    with pytest.raises(ValueError, match="has 32 bytes for shape"):
        Feeds([["x", "float32", [3, 4], 32, parts]], False)
