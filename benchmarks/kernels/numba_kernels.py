"""The kernels as loops for numba, the way a user of it would write them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
import numpy as np


def tropical(a, b):  # type: ignore[no-untyped-def]
    m, kk, n = a.shape[0], a.shape[1], b.shape[1]
    out = np.full((m, n), -np.inf, np.float32)
    for i in numba.prange(m):
        for k in range(kk):
            for j in range(n):
                out[i, j] = max(out[i, j], a[i, k] + b[k, j])
    return out


def window_attention(q, k, v, bias):  # type: ignore[no-untyped-def]
    h, n, d = q.shape
    w = bias.shape[1]
    out = np.zeros((h, n, d), np.float32)
    scale = np.float32(d**-0.5)
    for g in range(h):
        for i in numba.prange(n):
            s = np.empty(w, np.float32)
            first = max(0, i - w + 1)
            top = np.float32(-np.inf)
            for j in range(first, i + 1):
                t = np.float32(0)
                for e in range(d):
                    t += q[g, i, e] * k[g, j, e]
                s[j - first] = t * scale + bias[g, i - j]
                top = max(top, s[j - first])
            z = np.float32(0)
            for j in range(first, i + 1):
                p = np.exp(s[j - first] - top)
                z += p
                for e in range(d):
                    out[g, i, e] += p * v[g, j, e]
            for e in range(d):
                out[g, i, e] /= z
    return out


def selective_scan(u, dt, a, b, c):  # type: ignore[no-untyped-def]
    steps, width = u.shape
    n = a.shape[1]
    state = np.zeros((width, n), np.float32)
    out = np.empty((steps, width), np.float32)
    for t in range(steps):
        for x in range(width):
            y = np.float32(0)
            drive = dt[t, x] * u[t, x]
            for m in range(n):
                state[x, m] = np.exp(dt[t, x] * a[x, m]) * state[x, m] + drive * b[t, m]
                y += state[x, m] * c[t, m]
            out[t, x] = y
    return out


def nearest(q, p):  # type: ignore[no-untyped-def]
    out = np.empty((q.shape[0], 8), np.float32)
    for i in numba.prange(q.shape[0]):
        scores = np.empty(p.shape[0], np.float32)
        for j in range(p.shape[0]):
            t = np.float32(0)
            for d in range(q.shape[1]):
                t += abs(q[i, d] - p[j, d])
            scores[j] = t
        best = out[i]
        best[:] = np.inf
        for j in range(p.shape[0]):
            if scores[j] < best[7]:
                k = 7
                while k > 0 and best[k - 1] > scores[j]:
                    best[k] = best[k - 1]
                    k -= 1
                best[k] = scores[j]
    return out


def butterfly(x, w):  # type: ignore[no-untyped-def]
    rows, n = x.shape
    out = x.copy()
    for r in numba.prange(rows):
        for s in range(w.shape[0]):
            step = 1 << s
            for m in range(n // 2):
                low = m // step * 2 * step + m % step
                a, b = out[r, low], out[r, low + step]
                out[r, low] = w[s, m, 0, 0] * a + w[s, m, 0, 1] * b
                out[r, low + step] = w[s, m, 1, 0] * a + w[s, m, 1, 1] * b
    return out


def deformable(value, size, start, place, weight):  # type: ignore[no-untyped-def]
    b, _, h, c = value.shape
    _, q, _, levels, points, _ = place.shape
    out = np.zeros((b, q, h, c), np.float32)
    for n in range(b):
        for i in numba.prange(q):
            for g in range(h):
                for le in range(levels):
                    rows, columns = size[le, 0], size[le, 1]
                    for p in range(points):
                        y = place[n, i, g, le, p, 1] * rows - np.float32(0.5)
                        x = place[n, i, g, le, p, 0] * columns - np.float32(0.5)
                        y0, x0 = int(np.floor(y)), int(np.floor(x))
                        fy, fx = y - y0, x - x0
                        for dy in range(2):
                            for dx in range(2):
                                if 0 <= y0 + dy < rows and 0 <= x0 + dx < columns:
                                    wy = fy if dy == 1 else 1 - fy
                                    wx = fx if dx == 1 else 1 - fx
                                    part = weight[n, i, g, le, p] * wy * wx
                                    at = start[le] + (y0 + dy) * columns + x0 + dx
                                    for z in range(c):
                                        out[n, i, g, z] += part * value[n, at, g, z]
    return out


def kernel(name: str, threads: int) -> Callable[..., Any] | None:
    """The kernel of that name, its outer loop shared among threads; None for those that numba leaves to a library."""
    function = globals().get(name)
    if function is None:
        return None
    numba.set_num_threads(threads)
    made: Callable[..., Any] = numba.njit(fastmath=True, parallel=threads > 1)(function)
    return made
