"""What kernels mean, by the oracle, and what is refused, with the user's line and what to write."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from portolan.kernels import KernelError, shapes
from portolan.kernels.bounds import affine, extent, facts, never_negative
from portolan.kernels.source import read_file
from portolan.kernels.tree import Idx, Num, Op
from support import operators

HEAD = "from portolan import kernel\n\n\n@kernel\n"
RNG = np.random.default_rng(0)


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def test_products_and_reductions() -> None:
    a, b = normal(4, 5), normal(5, 3)
    np.testing.assert_allclose(operators.matmul.oracle(a, b)[0], a.astype(float) @ b, rtol=1e-12)
    np.testing.assert_allclose(operators.tropical.oracle(a, b)[0], (a[:, :, None] + b[None]).max(1), rtol=1e-6)
    x = normal(3, 7)
    total, product, best, worst, flags = operators.statistics.oracle(x)
    np.testing.assert_allclose(total, x.sum(1), rtol=1e-5)
    np.testing.assert_allclose(product, x.prod(1), rtol=1e-5)
    assert best.tolist() == x.argmax(1).tolist()
    assert worst.tolist() == x.argmin(1).tolist()
    assert flags.tolist() == ((x > 0.9).any(1) * 1.0 + (x < 0.9).all(1) * 2.0).tolist()


def test_softmax_and_norm() -> None:
    x = normal(4, 9)
    e = np.exp(x - x.max(1, keepdims=True))
    np.testing.assert_allclose(operators.softmax.oracle(x)[0], e / e.sum(1, keepdims=True), rtol=1e-5)
    g, b = normal(9), normal(9)
    want = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-5) * g + b
    np.testing.assert_allclose(operators.layer_norm.oracle(x, g, b)[0], want, rtol=1e-4, atol=1e-5)


def test_attention_over_a_window() -> None:
    q, k, v, bias = normal(2, 6, 4), normal(2, 6, 4), normal(2, 6, 4), normal(2, 3)
    want = np.zeros((2, 6, 4))
    for h in range(2):
        for i in range(6):
            near = [j for j in range(6) if 0 <= i - j < 3]
            s = np.array([q[h, i] @ k[h, j] / 2 + bias[h, i - j] for j in near])
            p = np.exp(s - s.max())
            want[h, i] = (p / p.sum()) @ v[h, near]
    np.testing.assert_allclose(operators.window_attention.oracle(q, k, v, bias)[0], want, rtol=1e-5, atol=1e-6)


def test_scan_ranking_stages_and_gather() -> None:
    x = normal(2, 5)
    np.testing.assert_allclose(operators.cumulative.oracle(x)[0], x.cumsum(1), rtol=1e-5)
    q, p = normal(3, 4), normal(7, 4)
    distance = np.abs(q[:, None] - p[None]).sum(-1)
    values, places = operators.knn.oracle(q, p)
    np.testing.assert_allclose(values, np.sort(distance, 1)[:, :4], rtol=1e-5)
    assert places.tolist() == distance.argsort(1, kind="stable")[:, :4].tolist()
    x, w = normal(3, 8), normal(3, 4, 2, 2)
    y = x.astype(float)
    for s in range(3):
        step, new = 1 << s, np.empty_like(y)
        for low in (i for i in range(8) if not i & step):
            m = low // (2 * step) * step + low % step
            new[:, low] = w[s, m, 0, 0] * y[:, low] + w[s, m, 0, 1] * y[:, low + step]
            new[:, low + step] = w[s, m, 1, 0] * y[:, low] + w[s, m, 1, 1] * y[:, low + step]
        y = new
    np.testing.assert_allclose(operators.butterfly.oracle(x, w)[0], y, rtol=1e-5)
    table, places = normal(5, 2), np.array([4, 0, 9, -1], np.int32)
    assert operators.gathered.oracle(table, places)[0].tolist() == (2.0 * table[[4, 0, 4, 0]]).tolist()


def test_nothing_gives_the_identity() -> None:
    empty = np.zeros((2, 0), np.float32)
    total, product, best, worst, flags = operators.statistics.oracle(empty)
    assert (total.tolist(), product.tolist()) == ([0, 0], [1, 1])
    assert (best.tolist(), worst.tolist(), flags.tolist()) == ([-1, -1], [-1, -1], [2, 2])
    assert np.isneginf(operators.tropical.oracle(empty, np.zeros((0, 3), np.float32))[0]).all()
    none = operators.wide_scores.oracle(normal(2, 3), np.zeros((0, 3), np.float32), np.zeros((0, 4), np.float32))
    assert none[0].tolist() == np.zeros((2, 4)).tolist()


def test_places_of_an_affine_index_are_proved() -> None:
    i, j = Idx("i"), Idx("j")
    ranges = {"i": "i", "j": "j"}
    difference = affine(Op("sub", (i, j), "i"))
    assert difference is not None
    assert not never_negative(difference, ranges)
    known = facts([Op("ge", (Op("sub", (i, j), "i"), Num(0, "i")), "b")])
    assert never_negative(difference, ranges, known)
    top = extent("i") - difference
    assert never_negative(top, ranges)
    assert affine(Op("mul", (i, j), "i")) is None


def test_a_file_is_read_and_not_run(tmp_path: Path) -> None:
    file = tmp_path / "ops.py"
    file.write_text(
        "import nowhere\nfrom portolan import kernel, shapes\nN = 3\nraise SystemExit\n\n@kernel\n"
        'def f(x: "i j") -> "i":\n    return sum(x[i, j] * N for j in J)\n\nshapes(f, i=4, j=5)\nshapes(f, i=7, j=8)\n'
    )
    (found,) = read_file(file)
    assert found.program.name == "f"
    assert found.sizes == ({"i": 4, "j": 5}, {"i": 7, "j": 8})


def test_shapes_beside_a_live_kernel() -> None:
    shapes(operators.transpose, i=3, j=4)
    assert operators.transpose.usual() == {"i": 3, "j": 4}
    operators.transpose.sizes.clear()
    with pytest.raises(KernelError, match="no size for the axis `j`"):
        shapes(operators.transpose, i=3)


WRONG = {
    "unknown-name": 'def f(A: "i k") -> "i":\n    return sum(A[i, k] * B[k] for k in K)\n',
    "unknown-function": 'def f(A: "i k") -> "i":\n    return sum(exq(A[i, k]) for k in K)\n',
    "unknown-extent": 'def f(A: "i k") -> "i":\n    return sum(A[i, k] for k in L)\n',
    "too-few-indices": 'def f(A: "i k") -> "i":\n    return sum(A[i] for k in K)\n',
    "whole-array": 'def f(A: "i i") -> "i":\n    return A\n',
    "float-index": 'def f(A: "i", x: "i") -> "i":\n    return A[x[i]]\n',
    "number-as-condition": 'def f(A: "i k") -> "i":\n    return sum(A[i, k] for k in K if k)\n',
    "truth-as-result": 'def f(A: "i k") -> "i":\n    return any(A[i, k] > 0 for k in K)\n',
    "truth-as-number": 'def f(A: "i k") -> "i":\n    return sum(A[i, k] > 0 for k in K)\n',
    "index-left-over": 'def f(A: "i k") -> "i":\n    return A[i, k]\n',
    "axis-of-nothing": 'def f(A: "i k") -> "i j":\n    return sum(A[i, k] for k in K)\n',
    "reads-before-the-start": 'def f(x: "t", w: "k") -> "t":\n    return sum(x[t - k] * w[k] for k in K)\n',
    "reads-past-the-end": 'def f(x: "t") -> "t":\n    return x[t + 1]\n',
    "reads-another-axis": 'def f(x: "t", y: "u") -> "t":\n    return y[t]\n',
    "slice": 'def f(x: "t") -> "t":\n    return x[1:]\n',
    "no-annotation": 'def f(x) -> "t":\n    return x[t]\n',
    "no-result-annotation": 'def f(x: "t"):\n    return x[t]\n',
    "bad-axis": 'def f(x: "T") -> "t":\n    return x[t]\n',
    "bad-type": 'def f(x: "t : float16") -> "t":\n    return x[t]\n',
    "statement": 'def f(x: "t") -> "t":\n    if x[t] > 0:\n        return x[t]\n',
    "no-return": 'def f(x: "t") -> "t":\n    y = x[t]\n',
    "reduction-of-a-list": 'def f(x: "t") -> "t":\n    return sum([x[t], 1])\n',
    "softmean-of-one": 'def f(x: "t") -> "":\n    return softmean(x[t] for t in T)\n',
    "ranking-without-axis": 'def f(x: "i j") -> "i":\n    return smallest(3, (x[i, j] for j in J), r)\n',
    "scan-of-a-value": 'def f(x: "t") -> "t":\n    return scan(x[t], t)\n',
    "argument-assigned": 'def f(x: "t") -> "t":\n    x = x[t] + 1\n    return x\n',
    "import": 'def f(x: "t") -> "t":\n    import os\n    return x[t]\n',
    "attribute": 'def f(x: "t") -> "t":\n    return x.sum()\n',
    "hostile-name": 'def f(x: "t") -> "t":\n    return __import__("os").system("true")\n',
    "float-as-integer-result": 'def f(x: "t") -> "t : i32":\n    return x[t]\n',
    "too-large-a-number": 'def f(x: "t") -> "t":\n    return x[t] * 4294967296\n',
    "two-values-for-one": 'def f(x: "t") -> "t":\n    return x[t], x[t]\n',
}


SNAPSHOT = Path(__file__).parents[1] / "golden" / "kernel_errors.txt"


def said(name: str) -> str:
    Path("ops.py").write_text(HEAD + WRONG[name])
    with pytest.raises(KernelError) as found:
        read_file(Path("ops.py"))
    assert found.value.exit_code == 2
    hint = f"hint: {found.value.hint}\n" if found.value.hint else ""
    return f"== {name}\n{WRONG[name]}\nerror: {found.value.message}\n  at {found.value.where}\n{hint}"


def test_what_is_wrong_is_said_with_its_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = "\n".join(said(name) for name in WRONG)
    if os.environ.get("UPDATE_GOLDEN"):
        SNAPSHOT.write_text(text, encoding="utf-8")
    assert text == SNAPSHOT.read_text(encoding="utf-8")
