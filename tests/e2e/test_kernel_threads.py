"""Threads that wait in C: every task once, callers apart, a fork alone, an end, and Python without a compiler."""

from __future__ import annotations

import gc
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from portolan.core import native
from portolan.kernels.compiler import find
from portolan.kernels.sharing import Threads, sharing

pytestmark = [
    pytest.mark.usefixtures("cache"),
    pytest.mark.skipif(not any(map(shutil.which, ("gcc", "clang", "cc"))), reason="needs a C compiler"),
]

#: Adds one to each element of its tasks, after a while, and says who did; its workspace has to be its thread's own.
SOURCE = """
#include <pthread.h>
#include <stdint.h>
#include <time.h>
#include <unistd.h>
int64_t count_tasks(const int64_t *sizes) { return sizes[0]; }
int64_t count_workspace(const int64_t *sizes) { return 4096; }
void count(void *const *arrays, const int64_t *sizes, void *workspace, int64_t first, int64_t last) {
  int32_t *out = arrays[0], *own = workspace;
  int64_t *who = arrays[1];
  for (int64_t n = first; n < last; n++) {
    for (int k = 0; k < 1024; k++) own[k] = (int32_t)n;
    if (sizes[1]) usleep(sizes[1]);
    int right = 1;
    for (int k = 0; k < 1024; k++) right &= own[k] == (int32_t)n;
    out[n] += right;
    who[n] = (int64_t)pthread_self();
  }
}
"""


@pytest.fixture
def library() -> native.Library:
    return native.Library(find().build(SOURCE), "count", ("n", "wait"))


def call(library: native.Library, out: np.ndarray, wait: int, pool: native.Sharing) -> int:
    """Runs the kernel, each task `wait` microseconds; how many threads took part."""
    who = np.zeros(len(out), np.int64)
    library([out, who], {"n": len(out), "wait": wait}, pool)
    return len(set(who.tolist()))


def test_every_task_is_done_once_whoever_does_it(library: native.Library) -> None:
    pool = Threads(4)
    for n in (1, 2, 3, 31, 32, 33, 500):
        out = np.zeros(n, np.int32)
        for _ in range(300):
            call(library, out, 0, pool)
        assert (out == 300).all()


def test_helpers_take_part_also_after_they_slept(library: native.Library) -> None:
    pool, out = Threads(4), np.zeros(32, np.int32)
    for rest in (0.0, 0.05, 0.0):
        time.sleep(rest)  # helpers that wait longer than a moment sleep
        assert call(library, out, 10_000, pool) > 1
    assert (out == 3).all()


def test_callers_do_not_wait_for_each_other(library: native.Library) -> None:
    pool = Threads(3)
    arrays = [np.zeros(40, np.int32) for _ in range(6)]

    def calling(out: np.ndarray) -> None:
        for _ in range(50):
            call(library, out, 50, pool)

    callers = [threading.Thread(target=calling, args=(out,)) for out in arrays]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(60)
    assert all((out == 50).all() for out in arrays)


def test_a_fork_works_alone(library: native.Library) -> None:
    pool, out = Threads(3), np.zeros(16, np.int32)
    call(library, out, 0, pool)
    child = os.fork()
    if child == 0:
        call(library, out, 0, pool)
        pool.close()  # of the parent's threads, which are not here
        os._exit(0 if (out == 2).all() else 1)
    end = time.monotonic() + 30
    while (done := os.waitpid(child, os.WNOHANG)) == (0, 0) and time.monotonic() < end:
        time.sleep(0.01)
    if done == (0, 0):
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert done == (child, 0)


def tasks() -> int:
    return len(list(Path("/proc/self/task").iterdir()))


def settled(count: int) -> bool:
    end = time.monotonic() + 20
    while tasks() > count and time.monotonic() < end:
        time.sleep(0.01)
    return tasks() <= count


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="needs Linux")
def test_threads_end_with_their_owner(library: native.Library) -> None:
    before = tasks()
    pool = Threads(3)
    call(library, np.zeros(8, np.int32), 0, pool)
    assert tasks() == before + 2
    del pool
    gc.collect()
    assert settled(before)


def test_a_program_ends_while_helpers_wait() -> None:
    code = "from portolan.kernels.sharing import Threads; held = Threads(3); print('made')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert (done.stdout, done.stderr) == ("made\n", "")


@pytest.fixture
def without_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("PORTOLAN_CC", raising=False)
    from portolan.kernels import sharing as module

    module._library.cache_clear()
    yield
    module._library.cache_clear()


def test_without_a_compiler_threads_wait_in_python(library: native.Library, without_compiler: None) -> None:
    pool, out = sharing(2), np.zeros(20, np.int32)
    assert isinstance(pool, native.Pool)
    call(library, out, 0, pool)
    assert (out == 1).all()


def test_one_thread_needs_no_pool() -> None:
    assert isinstance(sharing(1), native.Pool)
    assert isinstance(sharing(2), Threads)
