"""Derivatives of kernels: by finite differences of the oracle, and as text that means the same."""

# ruff: noqa: F722, F821, UP037

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from portolan.kernels import KernelError
from portolan.kernels.arrays import result_shapes, widened
from portolan.kernels.derive.gradient import Gradient
from portolan.kernels.derive.notation import notation
from portolan.kernels.oracle import evaluate
from portolan.kernels.source import read_file
from portolan.kernels.tree import Program
from portolan.kernels.verify import random_arrays
from support import operators

Array = np.ndarray
NONE = {"integers": "no argument changes"}
SMOOTH = [name for name in operators.EVERY if name not in NONE]


def arguments(program: Program, seed: int) -> tuple[dict[str, int], list[Array], list[Array]]:
    """Sizes, arguments in float64 and derivatives of the results."""
    rng = np.random.default_rng(seed)
    sizes = {s: int(rng.integers(2, 6)) for s in program.symbols}
    if program.name in ("nearest", "knn", "top"):
        sizes["j"] = 9  # a ranking of fewer than it asks for is infinite
    given = [widened(t, a) for t, a in zip(program.inputs, random_arrays(program, sizes, rng), strict=True)]
    arrays = [a if t.dtype == "i32" else np.asarray(a, float) for t, a in zip(program.inputs, given, strict=True)]
    return sizes, arrays, [rng.standard_normal(s) for s in result_shapes(program, sizes)]


def derivatives(
    gradient: Gradient, arrays: list[Array], seeds: list[Array], programs: Sequence[Program] = ()
) -> Mapping[str, Array]:
    """The derivatives of all arguments that have one, by the oracle; `programs` stand for the gradient's own."""

    def call(program: Program) -> Callable[..., Any]:
        def run(*given: Array) -> Any:
            made = evaluate(program, list(given))
            return made if len(made) > 1 else made[0]

        return run

    own = [k.program for k in gradient.kernels]
    steps = [(p, call(q)) for p, q in zip(own, programs or own, strict=True)]
    found = gradient.through(steps, [*arrays, *seeds])
    return {f"grad_{t.name}": f for t, f in zip(gradient.program.inputs, found, strict=True) if f is not None}


def difference(program: Program, arrays: list[Array], seeds: list[Array], place: int, way: Array) -> float:
    """The derivative along a direction of one argument, from two evaluations."""

    def loss(array: Array) -> float:
        found = evaluate(program, [*arrays[:place], array, *arrays[place + 1 :]])
        return float(sum((f * s).sum() for f, s in zip(found, seeds, strict=True)))

    step = 1e-6
    return (loss(arrays[place] + step * way) - loss(arrays[place] - step * way)) / (2 * step)


@pytest.mark.parametrize("name", SMOOTH)
def test_derivatives_are_those_of_finite_differences(name: str) -> None:
    program = operators.EVERY[name].program
    gradient = Gradient(program)
    _, arrays, seeds = arguments(program, 3)
    found = derivatives(gradient, arrays, seeds)
    rng, total = np.random.default_rng(0), 0.0
    for place, tensor in enumerate(program.inputs):
        if tensor.name not in gradient.wanted:
            continue
        grad = found[f"grad_{tensor.name}"]
        for _ in range(4):
            way = rng.standard_normal(grad.shape)
            want = difference(program, arrays, seeds, place, way)
            assert (grad * way).sum() == pytest.approx(want, rel=1e-5, abs=1e-6 * max(1.0, np.abs(grad).sum()))
            total += abs(want)
    assert total > 0, "a gradient of zeros shows nothing"


@pytest.mark.parametrize(("name", "said"), NONE.items())
def test_what_has_no_gradient_says_so(name: str, said: str) -> None:
    with pytest.raises(KernelError, match=said):
        operators.EVERY[name].grad()


def test_stages_that_mix_and_what_comes_behind_them() -> None:
    """Layers that share a weight, are told their number, and are followed by a reduction that reads one of them too."""
    from portolan.kernels import kernel

    @kernel
    def deep(x: "b i", w: "s i i", g: "i : f16", v: "i") -> ("b", "b i"):
        for s in S:
            x = tanh(sum(w[s, i, j] * x[b, j] for j in I) + g[i] * (s + 1.0)) + x[b, i]
        return sum(x[b, i] * v[i] * g[i] for i in I), x[b, i] * 2.0

    @kernel
    def smoothed(x: "b t", f: "k") -> "b t":
        for s in range(3):
            x = sum(x[b, t - k] * f[k] for k in K if t - k >= 0) + 0.1 * s
        h = scan(lambda h: 0.5 * h + x[b, t], t)
        return h * sum(h * f[k] for k in K)

    for made, sizes in ((deep, {"b": 3, "s": 4, "i": 5}), (smoothed, {"b": 2, "t": 7, "k": 3})):
        program, gradient = made.program, made.grad()
        rng = np.random.default_rng(0)
        arrays = [0.5 * rng.standard_normal([sizes[str(a)] for a in t.axes]) for t in program.inputs]
        seeds = [rng.standard_normal(s) for s in result_shapes(program, sizes)]
        found = derivatives(gradient, arrays, seeds)
        assert len(found) == len(program.inputs)
        for place, tensor in enumerate(program.inputs):
            way = rng.standard_normal(arrays[place].shape)
            want = difference(program, arrays, seeds, place, way)
            assert (found[f"grad_{tensor.name}"] * way).sum() == pytest.approx(want, rel=1e-5, abs=1e-7)
        for own, kernel_ in zip(gradient.sizes(sizes), gradient.kernels, strict=True):
            assert set(own) == set(kernel_.program.symbols)


def test_a_scan_of_a_reduced_state_has_no_gradient() -> None:
    from portolan.kernels import kernel

    @kernel
    def mixed(x: "t n", w: "n m") -> "t m":
        return scan(lambda h: sum(w[n, m] * x[t, n] for n in N) + max(h, 0.0), t)

    assert mixed.grad().wanted == ("x", "w")

    @kernel
    def folded(x: "t n") -> "t":
        return scan(lambda h: sum(h * x[t, n] for n in N), t)

    with pytest.raises(KernelError, match="not element-wise"):
        folded.grad()


@pytest.mark.parametrize("name", SMOOTH)
def test_the_text_of_a_gradient_means_the_same(name: str, tmp_path: Path) -> None:
    gradient = operators.EVERY[name].grad()
    _, arrays, seeds = arguments(gradient.program, 5)
    file = tmp_path / "again.py"
    file.write_text("from portolan import kernel\n\n\n" + str(gradient))
    again = derivatives(gradient, arrays, seeds, [f.program for f in read_file(file)])
    for name, want in derivatives(gradient, arrays, seeds).items():
        np.testing.assert_allclose(again[name], want, rtol=1e-9, atol=1e-12)


def test_the_text_binds_as_the_tree_does(tmp_path: Path) -> None:
    file = tmp_path / "ops.py"
    file.write_text(
        "from portolan import kernel\n\n\n@kernel\ndef f(x: 'i', n: 'i : i32') -> 'i':\n"
        "    return -(x[i] - (x[i] - 2.0)) ** 2 / (x[i] * (3.0 / x[i])) + (1.0 if not (n[i] < 2 or n[i] > 5) else 0.0)"
        " + (n[i] - (n[i] // 3) * -2 & 3) ** 2\n"
    )
    (found,) = read_file(file)
    file.write_text("from portolan import kernel\n\n\n" + notation(found.program))
    (again,) = read_file(file)
    arrays = [np.linspace(0.1, 3, 9), np.arange(9)]
    assert evaluate(again.program, arrays)[0].tolist() == evaluate(found.program, arrays)[0].tolist()
