"""Kernels of every construct of the language: what a language has to print right, and what the benchmark times.

Read as text, and not imported: `kit.kernels()` has them by name.
"""

from __future__ import annotations

from portolan.kernels import kernel

# The bodies are index notation: `K` and `exp` exist where the kernels are read, not in this module.
# ruff: noqa: D103, F821, F722, UP037

EPS = 1e-5


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


@kernel
def matmul(A: "i k", B: "k j") -> "i j":
    return sum(A[i, k] * B[k, j] for k in K)


@kernel
def transposed(A: "k i", B: "j k") -> "i j":
    return sum(A[k, i] * B[j, k] for k in K)


@kernel
def batched(A: "b i k", B: "b k j") -> "b i j":
    return sum(A[b, i, k] * B[b, k, j] for k in K)


@kernel
def bilinear(x: "b i", T: "i j k", y: "b k") -> "b j":
    return sum(x[b, i] * T[i, j, k] * y[b, k] for i in I for k in K)


@kernel
def mean_shift(X: "i d", Y: "j d", V: "j c") -> "i c":
    w = exp(-sum((X[i, d] - Y[j, d]) ** 2 for d in D))
    return sum(w * V[j, c] for j in J) / sum(w for j in J)


@kernel
def cumulative(x: "b t") -> "b t":
    return scan(lambda h: h + x[b, t], t)


@kernel
def causal_conv(x: "b t", w: "k") -> "b t":
    return sum(x[b, t - k] * w[k] for k in K if t - k >= 0)


@kernel
def padded_conv(x: "h w", f: "p q") -> "h w":
    return sum(x[h + p - 1, w + q - 1] * f[p, q] for p in P for q in Q if 0 <= h + p - 1 < H and 0 <= w + q - 1 < W)


@kernel
def knn(q: "i d", p: "j d") -> ("i r", "i r"):
    return smallest(4, (sum(abs(q[i, d] - p[j, d]) for d in D) for j in J), r)


@kernel
def top(x: "i j") -> "i r":
    return largest(3, (x[i, j] for j in J if j > 0), r)


@kernel
def layer_norm(x: "i d", g: "d", b: "d") -> "i d":
    mean = sum(x[i, e] for e in D) / D
    var = sum((x[i, e] - mean) ** 2 for e in D) / D
    return (x[i, d] - mean) * (var + EPS) ** -0.5 * g[d] + b[d]


@kernel
def softmax(x: "i d") -> "i d":
    return exp(x[i, d] - logsumexp(x[i, e] for e in D))


@kernel
def gathered(x: "n d", idx: "i : i32") -> "i d":
    return x[idx[i], d] * 2


@kernel
def statistics(x: "i j") -> ("i", "i", "i", "i", "i"):
    return (
        sum(x[i, j] for j in J),
        prod(x[i, j] for j in J),
        argmax(x[i, j] for j in J),
        argmin(x[i, j] for j in J),
        where(any(x[i, j] > 0.9 for j in J), 1.0, 0.0) + where(all(x[i, j] < 0.9 for j in J), 2.0, 0.0),
    )


@kernel
def transpose(x: "i j") -> "j i":
    return x[i, j]


@kernel
def elementwise(x: "i", y: "i") -> "i":
    a = max(x[i], y[i], 0.0) + min(x[i], 1.0) - abs(y[i])
    b = sigmoid(x[i]) + tanh(y[i]) + log(abs(x[i]) + 1) + sqrt(abs(y[i])) + erf(x[i])
    return a * b + floor(x[i] * 3) - ceil(y[i] * 3) + sin(x[i]) * cos(y[i]) + (x[i] if i % 3 == 1 else i // 2)


@kernel
def half(A: "i k : f16", B: "k j : f16") -> "i j : f16":
    return sum(A[i, k] * B[k, j] for k in K)


@kernel
def brain(A: "i k : bf16", B: "k j : bf16") -> "i j : f32":
    return sum(A[i, k] * B[k, j] for k in K)


@kernel
def integers(A: "i k : i8", B: "k j : i8") -> "i j : i32":
    return sum(A[i, k] * B[k, j] for k in K)


@kernel
def scaled(x: "i", alpha: "") -> "i":
    return alpha * x


@kernel
def wide_scores(q: "i d", k: "j d", v: "j c") -> "i c":
    s = sum(q[i, d] * k[j, d] for d in D)
    return softmean((s, v[j, c]) for j in J if j <= i)


@kernel
def bilinear_sample(img: "h w c", ys: "q", xs: "q") -> "q c":
    y0 = int(floor(ys[q]))
    x0 = int(floor(xs[q]))
    fy = ys[q] - y0
    fx = xs[q] - x0
    return sum(
        img[y0 + a, x0 + b, c] * (fy if a == 1 else 1 - fy) * (fx if b == 1 else 1 - fx)
        for a in range(2)
        for b in range(2)
        if 0 <= y0 + a < H and 0 <= x0 + b < W
    )
