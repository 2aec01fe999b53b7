"""The kernels in JAX, the way a user of it would write them, timed in a process of their own.

    PYTHON xla_kernels.py FOLDER NAME THREADS

FOLDER holds the arguments as 0.npy, 1.npy and so on. A line on stdin is the seconds of a block; the answer on stdout
is the median of its calls in milliseconds. The first line, unasked, is "ready"; the result is then in FOLDER/out.npy.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def window_attention(q: Any, k: Any, v: Any, bias: Any) -> Any:
    """Dense, with a mask."""
    import jax
    import jax.numpy as jnp

    n, w = q.shape[1], bias.shape[1]
    apart = jnp.arange(n)[:, None] - jnp.arange(n)[None]
    scores = jnp.einsum("hid,hjd->hij", q, k) * q.shape[2] ** -0.5 + bias[:, jnp.clip(apart, 0, w - 1)]
    scores = jnp.where((apart >= 0) & (apart < w), scores, -jnp.inf)
    return jnp.einsum("hij,hjd->hid", jax.nn.softmax(scores), v)


def deformable(value: Any, size: Any, start: Any, place: Any, weight: Any) -> Any:
    """The four neighbours of each point, taken by their place."""
    import jax
    import jax.numpy as jnp

    b, _, h, _ = value.shape
    y = place[..., 1] * size[:, 0][:, None] - 0.5
    x = place[..., 0] * size[:, 1][:, None] - 0.5
    y0, x0 = jnp.floor(y), jnp.floor(x)
    take = jax.vmap(jax.vmap(lambda image, at: image[at], (1, 1), 1), (0, 0), 0)
    total = 0.0
    for dy in range(2):
        for dx in range(2):
            yy, xx = y0.astype(int) + dy, x0.astype(int) + dx
            inside = (yy >= 0) & (yy < size[:, 0][:, None]) & (xx >= 0) & (xx < size[:, 1][:, None])
            at = jnp.where(inside, start[:, None] + yy * size[:, 1][:, None] + xx, 0)
            share = weight * (y - y0 if dy else 1 - y + y0) * (x - x0 if dx else 1 - x + x0) * inside
            q = at.shape[1]
            read = take(value, at.transpose(0, 1, 3, 4, 2).reshape(b, -1, h)).reshape(b, q, -1, h, value.shape[3])
            total += (read * share.transpose(0, 1, 3, 4, 2).reshape(b, q, -1, h, 1)).sum(2)
    return total


def tropical(a: Any, b: Any) -> Any:
    """One expression, which XLA fuses."""
    return (a[:, :, None] + b[None]).max(1)


def selective_scan(u: Any, dt: Any, a: Any, b: Any, c: Any) -> Any:
    """A scan over time."""
    import jax
    import jax.numpy as jnp

    def step(state: Any, now: Any) -> tuple[Any, Any]:
        u, dt, b, c = now
        state = jnp.exp(dt[:, None] * a) * state + (dt * u)[:, None] * b
        return state, state @ c

    return jax.lax.scan(step, jnp.zeros_like(a), (u, dt, b, c))[1]


def nearest(q: Any, p: Any) -> Any:
    """All distances, then the best of each row."""
    import jax
    import jax.numpy as jnp

    return -jax.lax.top_k(-jnp.abs(q[:, None] - p[None]).sum(-1), 8)[0]


def butterfly(x: Any, w: Any) -> Any:
    """A reshape and a stack for each stage."""
    import jax.numpy as jnp

    rows, n = x.shape
    for s in range(len(w)):
        step = 1 << s
        pairs = x.reshape(rows, n // (2 * step), 2, step)
        m = w[s].reshape(n // (2 * step), step, 2, 2)
        low, high = pairs[:, :, 0], pairs[:, :, 1]
        first, second = (m[:, :, r, 0] * low + m[:, :, r, 1] * high for r in range(2))
        x = jnp.stack([first, second], 2).reshape(rows, n)
    return x


def product(a: Any, b: Any) -> Any:
    """XLA's own."""
    return a @ b


def block(call: Callable[[], Any], seconds: float, clock: Callable[[], float] = time.perf_counter) -> float:
    """The median of a few calls, in milliseconds of a clock that counts seconds."""
    call()
    readings: list[float] = []
    end = time.perf_counter() + seconds
    while len(readings) < 3 or time.perf_counter() < end:
        begun = clock()
        call()
        readings.append((clock() - begun) * 1000)
    return sorted(readings)[len(readings) // 2]


def main() -> None:
    """Serves blocks until stdin ends."""
    folder, name, threads = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    # XLA takes as many threads as it may run on.
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    os.environ["JAX_PLATFORMS"] = "cpu"
    import jax
    import numpy as np

    given = [jax.device_put(np.load(folder / f"{n}.npy")) for n in range(len(list(folder.glob("[0-9].npy"))))]
    compiled = jax.jit(globals()[name])
    np.save(folder / "out.npy", np.asarray(compiled(*given)))
    print("ready", flush=True)
    for line in sys.stdin:
        print(block(lambda: compiled(*given).block_until_ready(), float(line)), flush=True)


if __name__ == "__main__":
    main()
