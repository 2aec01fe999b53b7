"""Shared memory: what is given is free, apart and aligned, and comes back whole."""

from __future__ import annotations

import mmap

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from portolan.serving.arena import Arena


@settings(max_examples=100)
@given(st.lists(st.one_of(st.integers(1, 3 << 20), st.just(-1)), max_size=60), st.randoms())
def test_pieces_never_overlap_and_all_come_back(wishes: list[int], random: object) -> None:
    arena = Arena(8 << 20)
    held: list[tuple[int, int]] = []
    for wish in wishes:
        if wish < 0 and held:
            arena.give(held.pop(random.randrange(len(held)))[0])  # type: ignore[attr-defined]
        elif wish > 0 and (place := arena.take(wish)) is not None:
            assert place % 65536 == 0
            assert all(place + wish <= other or place >= other + size for other, size in held)
            held.append((place, wish))
    for place, _ in held:
        arena.give(place)
    assert arena.used == 0
    whole = arena.take(8 << 20)
    assert whole == 0
    arena.close()


def test_it_says_when_it_is_full_and_goes_on_afterwards() -> None:
    arena = Arena(1 << 20)
    first = arena.take(600_000)
    assert first is not None
    assert arena.take(600_000) is None
    arena.give(first)
    assert arena.take(600_000) == first
    arena.close()


def test_another_mapping_sees_the_bytes() -> None:
    arena = Arena(1 << 20)
    place = arena.take(100_000)
    assert place is not None
    arena.view[place : place + 3] = b"abc"
    with mmap.mmap(arena.fd, 0) as other:
        assert other[place : place + 3] == b"abc"
    arena.close()


def test_giving_twice_is_an_error() -> None:
    arena = Arena(1 << 20)
    place = arena.take(1)
    assert place is not None
    arena.give(place)
    with pytest.raises(KeyError):
        arena.give(place)
