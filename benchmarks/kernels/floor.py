"""What reading takes of multi-scale deformable attention: `python benchmarks/kernels/floor.py [--batch 1,4]`.

It reads, for each query and head, the four rows of 32 numbers around each of its 16 samples, wherever these lie. Here a
C loop reads exactly those rows in the order of the queries, from a list of addresses made before, adds them up with a
weight, and does nothing else; with and without asking the processor for rows some steps ahead. One thread, in rounds of
one interleaved run with the kernel and eager PyTorch.

No lower bound: the kernel reads in an order of its own, and where the values outgrow the cache (batch 4) it is faster
than this loop.
"""

from __future__ import annotations

import argparse
import ctypes
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import eager
import numpy as np
import operators
import torch
from xla_kernels import block

from portolan.kernels.compiler import find
from portolan.measure.lock import measuring

SOURCE = """
typedef float half __attribute__((vector_size(64), aligned(4)));
void sum(const float *v, const int *at, const float *w, float *out, long groups, long per, long ahead) {
  for (long g = 0, i = 0; g < groups; g++) {
    half a = {0}, b = {0};
    for (long k = 0; k < per; k++, i++) {
      if (ahead && i + ahead < groups * per) {
        __builtin_prefetch(v + at[i + ahead], 0, 2); /* a head has few sets of the first cache */
        __builtin_prefetch(v + at[i + ahead] + 16, 0, 2);
      }
      a += w[i] * *(const half *)(v + at[i]);
      b += w[i] * *(const half *)(v + at[i] + 16);
    }
    *(half *)(out + 32 * g) = a;
    *(half *)(out + 32 * g + 16) = b;
  }
}
"""
AHEAD = (0, 8, 16, 32)
ROUNDS = 15


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", default="1,4")
    given = parser.parse_args()
    torch.set_num_threads(1)
    for batch in map(int, given.batch.split(",")):
        arrays = eager.arrays("deformable", (batch,), np.random.default_rng(0))
        tensors = [torch.from_numpy(a) for a in arrays]
        with tempfile.TemporaryDirectory() as folder:
            arms: dict[str, Callable[[], Any]] = {
                "portolan": partial(operators.deformable, *arrays, threads=1),
                "eager": partial(eager.deformable, *tensors),
                **{f"rows, {n} ahead": partial(*reader(arrays, Path(folder)), n) for n in AHEAD},
            }
            ms: dict[str, list[float]] = {name: [] for name in arms}
            with torch.inference_mode(), measuring():
                for order in np.random.default_rng(1).permuted([list(arms)] * ROUNDS, axis=1):
                    for name in order:
                        ms[name].append(block(arms[name], 0.02))
        print(f"batch {batch}: " + ", ".join(f"{name} {np.median(read):.3f} ms" for name, read in ms.items()))
    return 0


def reader(arrays: list[Any], folder: Path) -> tuple[Any, ...]:
    """The C loop, and all its arguments but the last."""
    value, levels, start, place, weight = arrays
    _, tokens, heads, width = value.shape
    b, _, h, level, _ = np.indices(weight.shape)
    corner = np.floor(place * levels[level][..., ::-1] - 0.5).astype(int)
    at = []
    for dy, dx in ((0, 0), (0, 1), (1, 0), (1, 1)):
        x = np.clip(corner[..., 0] + dx, 0, levels[level, 1] - 1)
        y = np.clip(corner[..., 1] + dy, 0, levels[level, 0] - 1)
        at.append(((b * tokens + start[level] + y * levels[level, 1] + x) * heads + h) * width)
    rows = np.ascontiguousarray(np.stack(at, -1).reshape(-1), np.int32)
    weights = np.ascontiguousarray(np.repeat(weight.reshape(-1), 4), np.float32)
    per = 4 * weight.shape[3] * weight.shape[4]
    out = np.zeros((len(rows) // per, width), np.float32)
    source, library = folder / "floor.c", folder / "floor.so"
    source.write_text(SOURCE)
    subprocess.run([*find().argv, "-O3", "-march=native", "-shared", "-fPIC", "-o", library, source], check=True)
    function = ctypes.CDLL(str(library)).sum
    function.argtypes = [ctypes.c_void_p] * 4 + [ctypes.c_long] * 3
    held = (value, rows, weights, out)  # as long as the partial lives
    return (lambda *given: function(*(a.ctypes.data for a in held), *given), len(out), per)


if __name__ == "__main__":
    sys.exit(main())
