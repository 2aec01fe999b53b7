"""Random arguments for timing: gathers read where there is something to read."""

# ruff: noqa: F722, F821, UP037

from __future__ import annotations

import numpy as np

from portolan.kernels import kernel
from portolan.kernels.sampled import places, shifts
from portolan.kernels.verify import real_case
from support import operators


def test_sample_points_are_inside_of_their_levels() -> None:
    """The multi-scale image of the benchmark, in small: places, sizes and starts together stay inside of it."""
    program = operators.deformable.program
    sizes = {"b": 1, "s": 4000, "h": 2, "c": 4, "v": 4, "q": 30, "p": 4}
    _, size, start, place, _ = real_case(program, sizes, np.random.default_rng(0)).arrays
    assert place.min() >= 0
    assert place.max() <= 1
    assert size.min() >= 1
    y = (place[0, ..., 1] * size[:, 0][:, None] - 0.5).astype(int)
    x = (place[0, ..., 0] * size[:, 1][:, None] - 0.5).astype(int)
    flat = start[:, None] + y * size[:, 1][:, None] + x
    assert (flat < sizes["s"]).mean() > 0.95
    assert len(np.unique(flat)) > flat.size / 4


def test_plain_places_run_over_the_whole_axis() -> None:
    @kernel
    def drawn(x: "n d", at: "i") -> "i d":
        return x[int(at[i]), d]

    @kernel
    def shifted(x: "n", by: "i : i32") -> "i":
        return x[1 << by[i]]

    assert places(operators.gathered.program, {"n": 9, "d": 2, "i": 5}) == {"idx": (0.0, 9.0)}
    assert places(drawn.program, {"n": 9, "d": 2, "i": 5}) == {"at": (0.0, 9.0)}
    assert places(operators.matmul.program, {"i": 3, "k": 4, "j": 5}) == {}
    assert shifts(shifted.program) == {"by"}
    (_, by) = real_case(shifted.program, {"n": 64, "i": 200}, np.random.default_rng(0)).arrays
    assert set(by.tolist()) == {0, 1, 2, 3, 4}
