"""What sharing a call among threads costs: `python benchmarks/kernels/sharing.py [--threads 2]`.

A kernel that does nothing but let time pass, cut into 16 tasks, run by one thread and shared among several that wait in
C or in Python (as they do without a compiler). Microseconds of a call, the median of 500 in each of 5 rounds, for calls
one after the other and with a pause between them. Exits 1 if sharing in C does not make a call of 20 us faster.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Mapping

import numpy as np

from portolan.core import native
from portolan.kernels.compiler import find
from portolan.kernels.sharing import Threads
from portolan.measure.lock import measuring

SOURCE = """
#include <stdint.h>
#include <time.h>
static int64_t now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec * 1000000000 + t.tv_nsec;
}
int64_t pass_tasks(const int64_t *sizes) { return sizes[0]; }
int64_t pass_workspace(const int64_t *sizes) { return 64; }
void pass(void *const *arrays, const int64_t *sizes, void *workspace, int64_t first, int64_t last) {
  for (; first < last; first++) for (int64_t end = now() + sizes[1]; now() < end;) {}
}
"""
TASKS, CALLS, ROUNDS = 16, 500, 5


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    library = native.Library(find().build(SOURCE), "pass", ("n", "ns"))
    pools = {"alone": None, "C": Threads(given.threads), "Python": native.Pool(given.threads)}
    worth = True
    for us in (20, 50, 100, 400):
        for pause in (0, 30):
            found = timed(library.bound({"n": TASKS, "ns": us * 1000 // TASKS}), pools, pause * 1e-6)
            print(f"{us:3} us, {pause:2} us apart: " + ", ".join(f"{name} {read:.1f}" for name, read in found.items()))
            worth &= us != 20 or found["C"] < found["alone"]
    return int(not worth)


def timed(bound: native.Bound, pools: Mapping[str, native.Sharing | None], pause: float) -> dict[str, float]:
    """Microseconds of a call by each pool: the median of the rounds' medians."""
    out, rng = np.zeros(1), np.random.default_rng(0)
    medians: dict[str, list[float]] = {name: [] for name in pools}
    with measuring():
        for order in rng.permuted([list(pools)] * ROUNDS, axis=1):
            for name in order:
                readings = []
                for _ in range(CALLS):
                    until = time.perf_counter() + pause
                    while time.perf_counter() < until:
                        pass
                    begun = time.perf_counter()
                    bound([out], pools[name])
                    readings.append((time.perf_counter() - begun) * 1e6)
                medians[name].append(statistics.median(readings))
    return {name: statistics.median(read) for name, read in medians.items()}


if __name__ == "__main__":
    sys.exit(main())
