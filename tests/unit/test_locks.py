"""Locks between processes, and the hash of a file; how timing waits for its lock is in `test_lock.py`."""

from __future__ import annotations

import math
import os
import threading
import time
from pathlib import Path

import pytest

from portolan.core.files import sha256
from portolan.core.locks import lock


def opened(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT)


def test_shared_holders_keep_out_one_who_wants_it_alone(tmp_path: Path) -> None:
    first, second, alone = (opened(tmp_path / "lock") for _ in range(3))
    assert lock(first, shared=True)
    assert lock(second, shared=True)
    assert not lock(alone)
    os.close(first)
    assert not lock(alone, wait=0.02)
    os.close(second)
    assert lock(alone)
    os.close(alone)


def test_waiting_without_end_ends_with_the_holder(tmp_path: Path) -> None:
    holder, waiting = opened(tmp_path / "lock"), opened(tmp_path / "lock")
    assert lock(holder)
    freed: list[float] = []

    def free() -> None:
        time.sleep(0.05)
        freed.append(time.monotonic())
        os.close(holder)

    thread = threading.Thread(target=free)
    thread.start()
    assert lock(waiting, wait=math.inf)
    assert time.monotonic() >= freed[0]
    thread.join()
    os.close(waiting)


def test_what_is_no_file_cannot_be_locked() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    os.close(writing)
    with pytest.raises(OSError):
        lock(reading)


def test_the_hash_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"abc")
    assert sha256(tmp_path / "f") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
