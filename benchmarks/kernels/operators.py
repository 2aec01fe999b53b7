"""The kernels of the benchmark, as a user would write them."""

from __future__ import annotations

from portolan import kernel

# The bodies are index notation: `K` and `exp` exist where the kernels are read, not in this module.
# ruff: noqa: F821, F722


@kernel
def window_attention(q: "h i d", k: "h j d", v: "h j d", bias: "h w") -> "h i d":
    s = sum(q[h, i, e] * k[h, j, e] for e in D) * D**-0.5 + bias[h, i - j]
    return softmean((s, v[h, j, d]) for j in J if 0 <= i - j < W)


@kernel
def deformable(
    value: "b s h c", size: "v 2 : i32", start: "v : i32", place: "b q h v p 2", weight: "b q h v p"
) -> "b q h c":
    y = place[b, q, h, v, p, 1] * size[v, 0] - 0.5
    x = place[b, q, h, v, p, 0] * size[v, 1] - 0.5
    y0 = int(floor(y))
    x0 = int(floor(x))
    fy = y - y0
    fx = x - x0
    return sum(
        weight[b, q, h, v, p]
        * (fy if dy == 1 else 1 - fy)
        * (fx if dx == 1 else 1 - fx)
        * value[b, start[v] + (y0 + dy) * size[v, 1] + x0 + dx, h, c]
        for v in V
        for p in P
        for dy in range(2)
        for dx in range(2)
        if 0 <= y0 + dy < size[v, 0] and 0 <= x0 + dx < size[v, 1]
    )


@kernel
def tropical(A: "i k", B: "k j") -> "i j":
    return max(A[i, k] + B[k, j] for k in K)


@kernel
def selective_scan(u: "t c", dt: "t c", A: "c n", B: "t n", C: "t n") -> "t c":
    h = scan(lambda h: exp(dt[t, c] * A[c, n]) * h + dt[t, c] * u[t, c] * B[t, n], t)
    return sum(h * C[t, n] for n in N)


@kernel
def nearest(q: "i d", p: "j d") -> "i r":
    return smallest(8, (sum(abs(q[i, d] - p[j, d]) for d in D) for j in J), r)


@kernel
def butterfly(x: "b i", w: "s m 2 2") -> "b i":
    for s in S:
        st = 1 << s
        m = i // (2 * st) * st + i % st
        hi = i // st % 2
        x = w[s, m, hi, 0] * x[b, i & ~st] + w[s, m, hi, 1] * x[b, i | st]
    return x


@kernel
def product(A: "i k", B: "k j") -> "i j":
    return sum(A[i, k] * B[k, j] for k in K)
