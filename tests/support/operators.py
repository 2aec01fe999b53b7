"""Kernels of every construct of the language, for tests."""

from __future__ import annotations

from pathlib import Path

from portolan.kernels import kernel
from portolan.kernels.decorated import Kernel
from portolan.kernels.source import read_file

# The bodies are index notation: `K` and `exp` exist where the kernels are read, not in this module.
# ruff: noqa: F821, F722, UP037

EPS = 1e-5

#: The kernels of the benchmark, from their own file.
BENCHED = {
    found.program.name: Kernel(found.program)
    for found in read_file(Path(__file__).parents[2] / "benchmarks" / "kernels" / "operators.py")
}
tropical, selective_scan = BENCHED["tropical"], BENCHED["selective_scan"]
window_attention, butterfly = BENCHED["window_attention"], BENCHED["butterfly"]


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


EVERY = {**BENCHED, **{name: value for name, value in list(globals().items()) if isinstance(value, Kernel)}}
