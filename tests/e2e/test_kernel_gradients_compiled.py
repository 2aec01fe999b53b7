"""Gradients as compiled kernels, against PyTorch's own derivatives of the same computation."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from portolan.errors import UsageError
from portolan.kernels import build
from portolan.kernels.verify import random_arrays
from support import operators

torch = pytest.importorskip("torch", reason="needs the torch extra")
pytestmark = [
    pytest.mark.usefixtures("cache"),
    pytest.mark.torch,
    pytest.mark.skipif(not any(map(shutil.which, ("gcc", "clang", "cc"))), reason="needs a C compiler"),
]


def window_attention(q: Any, k: Any, v: Any, bias: Any) -> Any:
    n, w = q.shape[1], bias.shape[1]
    apart = torch.arange(n)[:, None] - torch.arange(n)[None]
    scores = q @ k.transpose(1, 2) * q.shape[2] ** -0.5 + bias[:, apart.clamp(0, w - 1)]
    return scores.masked_fill((apart < 0) | (apart >= w), float("-inf")).softmax(-1) @ v


def selective_scan(u: Any, dt: Any, a: Any, b: Any, c: Any) -> Any:
    state, out = torch.zeros_like(a), []
    for t in range(len(u)):
        state = (dt[t, :, None] * a).exp() * state + (dt[t] * u[t])[:, None] * b[t]
        out.append(state @ c[t])
    return torch.stack(out)


def mean_shift(x: Any, y: Any, v: Any) -> Any:
    w = torch.exp(-((x[:, None] - y[None]) ** 2).sum(-1))
    return w @ v / w.sum(1, keepdim=True)


def butterfly(x: Any, w: Any) -> Any:
    for s in range(len(w)):
        pairs = x.reshape(len(x), -1, 2, 1 << s)
        weights = w[s].reshape(-1, 1 << s, 2, 2)
        x = torch.einsum("bmor,mrio->bmir", pairs, weights).reshape(x.shape)
    return x


THEIRS: dict[str, tuple[Callable[..., Any], dict[str, int]]] = {
    "matmul": (lambda a, b: a @ b, {"i": 33, "k": 17, "j": 50}),
    "tropical": (lambda a, b: (a[:, :, None] + b[None]).amax(1), {"i": 21, "k": 18, "j": 37}),
    "window_attention": (window_attention, {"h": 2, "i": 45, "j": 45, "d": 16, "w": 9}),
    "selective_scan": (selective_scan, {"t": 19, "c": 35, "n": 5}),
    "mean_shift": (mean_shift, {"i": 20, "d": 6, "j": 23, "c": 18}),
    "softmax": (lambda x: x.softmax(-1), {"i": 7, "d": 40}),
    "butterfly": (butterfly, {"b": 19, "i": 32, "s": 5, "m": 16}),
    "layer_norm": (lambda x, g, b: torch.nn.functional.layer_norm(x, x.shape[1:], g, b), {"i": 9, "d": 50}),
}


QUICK = ("tropical", "butterfly")


@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in THEIRS])
def test_derivatives_are_pytorchs(name: str) -> None:
    function, sizes = THEIRS[name]
    kernel = operators.EVERY[name]
    rng = np.random.default_rng(1)
    arrays = random_arrays(kernel.program, sizes, rng)
    tensors = [torch.from_numpy(a.copy()).requires_grad_() for a in arrays]
    result = function(*tensors)
    seed = rng.standard_normal(result.shape, np.float32)
    result.backward(torch.from_numpy(seed))
    for found, tensor in zip(kernel.grad()(*arrays, seed), tensors, strict=True):
        want = tensor.grad.numpy()
        np.testing.assert_allclose(found, want, rtol=2e-4, atol=2e-5 * max(1.0, np.abs(want).max()))


def test_integers_have_no_derivative_and_gathers_scatter() -> None:
    rng = np.random.default_rng(0)
    x, idx = rng.standard_normal((5, 3), np.float32), np.array([4, 0, 4, 9], np.int32)
    seed = rng.standard_normal((4, 3), np.float32)
    by_x, by_idx = operators.gathered.grad()(x, idx, seed)
    want = np.zeros_like(x)
    np.add.at(want, np.minimum(idx, 4), 2 * seed)
    np.testing.assert_allclose(by_x, want, rtol=1e-6)
    assert by_idx is None
    with pytest.raises(UsageError, match="takes 2 arguments and 1 derivatives"):
        operators.gathered.grad()(x, idx)


@pytest.mark.slow
def test_the_verb_tunes_the_kernels_of_gradients(tmp_path: Path) -> None:
    file = tmp_path / "ops.py"
    file.write_text(
        "from portolan import kernel, shapes\n\n\n@kernel\ndef mix(x: 'i k', w: 'k j') -> 'i j':\n"
        "    return sum(x[i, k] * w[k, j] for k in K)\n\n\nshapes(mix, i=24, k=20, j=40)\n"
    )
    rows = build(file, grad=True)["kernels"]
    assert [r["name"] for r in rows] == ["mix", "mix_grad"]
    assert rows[1]["max_abs_error"] < 1e-5
