"""The first runs of a model: which ones share batches, and which are padded to the number of rows that they take."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from portolan.serving.warm import Warm, padded, warm_up

Arrays = Mapping[str, np.ndarray]
ROWS = 4


def asked(tmp_path: Path, rows: int | str, x: np.ndarray | None = None, out: int | str | None = None) -> dict[str, Any]:
    samples = None
    if x is not None:
        samples = str(tmp_path / "x.npz")
        np.savez(samples, x=x)
    spec = {"name": "x", "dtype": "float32", "shape": [rows, 3]}
    made = {"name": "y", "dtype": "float32", "shape": [rows if out is None else out, 3]}
    return {"cap": 8, "inputs": [spec], "outputs": [made], "samples": samples, "measure": True}


def strict(work: Callable[[np.ndarray], np.ndarray]) -> Callable[[Arrays], dict[str, np.ndarray]]:
    """Runs with ROWS rows and with no other number."""

    def run(feeds: Arrays) -> dict[str, np.ndarray]:
        assert len(feeds["x"]) == ROWS
        return {"y": work(feeds["x"])}

    return run


@pytest.fixture
def x() -> np.ndarray:
    return np.arange(ROWS * 3, dtype=np.float32).reshape(ROWS, 3)


def test_rows_that_do_not_depend_on_each_other_can_be_padded(tmp_path: Path, x: np.ndarray) -> None:
    found = warm_up(strict(lambda x: x * 2), asked(tmp_path, ROWS, x))
    assert (found.batches, found.fixed) == (True, ROWS)
    assert found.profile[1] == found.profile[ROWS]


@pytest.mark.parametrize(
    "work",
    [
        pytest.param(lambda x: x - x.mean(axis=0), id="each row depends on all"),
        pytest.param(lambda x: np.cumsum(x, axis=0), id="each row depends on those before"),
        pytest.param(lambda x: x * np.arange(ROWS, dtype=np.float32)[:, None], id="each row depends on its place"),
        pytest.param(lambda x: x.sum(axis=0, keepdims=True), id="there is one row in the end"),
    ],
)
def test_what_depends_on_other_rows_is_not_padded(
    tmp_path: Path, x: np.ndarray, work: Callable[[np.ndarray], np.ndarray]
) -> None:
    found = warm_up(strict(work), asked(tmp_path, ROWS, x))
    assert (found.batches, found.fixed) == (False, 0)


def test_rows_that_are_all_the_same_prove_nothing(tmp_path: Path) -> None:
    run = strict(lambda x: x * 2)
    assert not warm_up(run, asked(tmp_path, ROWS, np.ones((ROWS, 3), np.float32))).fixed
    assert not warm_up(run, asked(tmp_path, ROWS)).fixed


def test_outputs_of_another_first_extent_are_no_rows(tmp_path: Path, x: np.ndarray) -> None:
    assert not warm_up(strict(lambda x: x * 2), asked(tmp_path, ROWS, x, out=1)).fixed
    assert not warm_up(strict(lambda x: x * 2), asked(tmp_path, ROWS, x, out="n")).fixed


def test_a_batch_of_one_is_no_batch(tmp_path: Path) -> None:
    run = lambda feeds: {"y": feeds["x"]}  # noqa: E731
    assert warm_up(run, asked(tmp_path, 1, np.ones((1, 3), np.float32))).fixed == 0


def test_a_free_axis_is_measured_at_every_size(tmp_path: Path, x: np.ndarray) -> None:
    found: Warm = warm_up(lambda feeds: {"y": feeds["x"]}, asked(tmp_path, "n", x))
    assert (found.batches, found.fixed) == (True, 0)
    assert sorted(found.profile) == [1, 2, 4, 8]


def test_padding_repeats_the_last_row(x: np.ndarray) -> None:
    assert padded(x[:2], 4).tolist() == [*x[:2].tolist(), x[1].tolist(), x[1].tolist()]
