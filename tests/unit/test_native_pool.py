"""The threads that share a kernel's tasks: work done once, errors told, callers apart, threads that end."""

from __future__ import annotations

import itertools
import threading
import time

import pytest

from portolan.core.native import Pool


def test_every_task_is_done_once_whoever_does_it() -> None:
    pool, done = Pool(4), []
    for _ in range(200):
        starts = itertools.count()

        def work(starts: itertools.count[int] = starts) -> None:
            while (n := next(starts)) < 25:
                done.append(n)

        pool.run(work)
        assert sorted(done) == list(range(25))
        done.clear()


def test_helpers_take_part_where_there_is_time() -> None:
    pool, together = Pool(3), threading.Barrier(3, timeout=20)
    names = set()

    def work() -> None:
        together.wait()  # nobody gets past it alone
        names.add(threading.current_thread().name)

    pool.run(work)
    assert "portolan-kernel" in names
    assert threading.main_thread().name in names


def test_errors_of_helpers_are_the_callers() -> None:
    pool, together = Pool(2), threading.Barrier(2, timeout=20)

    def work() -> None:
        together.wait()
        if threading.current_thread() is not threading.main_thread():
            raise ValueError("in a helper")

    with pytest.raises(ValueError, match="in a helper"):
        pool.run(work)
    pool.run(lambda: None)  # and the next call knows nothing of it


def test_a_second_caller_does_its_work_alone() -> None:
    pool, inside, leave = Pool(2), threading.Event(), threading.Event()
    calls: list[str] = []

    def first() -> None:
        inside.set()
        leave.wait(20)

    other = threading.Thread(target=pool.run, args=(first,))
    other.start()
    assert inside.wait(20)
    pool.run(lambda: calls.append("second"))
    leave.set()
    other.join(20)
    assert calls == ["second"]


def test_threads_end_with_the_pool() -> None:
    before = set(threading.enumerate())
    pool = Pool(3)
    helpers = set(threading.enumerate()) - before
    assert len(helpers) == 2
    del pool
    end = time.monotonic() + 20
    while any(helper.is_alive() for helper in helpers) and time.monotonic() < end:
        time.sleep(0.01)
    assert not any(helper.is_alive() for helper in helpers)
