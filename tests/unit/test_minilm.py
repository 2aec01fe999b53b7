"""The passes on a trained transformer: random weights hide what int8 does to one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from portolan.core.data import Data, load_data
from portolan.core.model import Model
from portolan.core.passes import Context
from portolan.frontends import load
from portolan.passes.quantize import quantize
from portolan.passes.simplify import simplify
from portolan.testing.models import this_machine
from portolan.testing.passes import run

EXAMPLE = Path(__file__).parents[2] / "examples" / "minilm.py"
CALIBRATION, EVALUATION = range(32), range(64, 128)

pytestmark = [pytest.mark.slow, pytest.mark.torch]


@pytest.fixture(scope="module")
def minilm(tmp_path_factory: pytest.TempPathFactory) -> tuple[Model, Data]:
    model = load(f"{EXAMPLE}:minilm", out=tmp_path_factory.mktemp("minilm"))
    return model, load_data(f"{EXAMPLE}:sentences", model.signature)


def cosine(model: Model, other: Model, data: Data) -> float:
    def vectors(which: Model) -> np.ndarray:
        feeds = ({name: array[i : i + 1] for name, array in data.inputs.items()} for i in EVALUATION)
        return np.concatenate([next(iter(run(which, inputs).values())) for inputs in feeds])

    one, two = vectors(model), vectors(other)
    return float(((one * two).sum(1) / np.linalg.norm(one, axis=1) / np.linalg.norm(two, axis=1)).mean())


def context(data: Data, folder: Path) -> Context:
    return Context(folder, this_machine(), {name: array[list(CALIBRATION)] for name, array in data.inputs.items()})


def test_simplify_changes_nothing(minilm: tuple[Model, Data], tmp_path: Path) -> None:
    model, data = minilm
    assert cosine(model, simplify(model, context(data, tmp_path)), data) > 1 - 1e-5


def test_dynamic_int8_keeps_the_meaning(minilm: tuple[Model, Data], tmp_path: Path) -> None:
    model, data = minilm
    result = quantize(model, context(data, tmp_path))
    assert cosine(model, result, data) >= 0.985
    assert result.path.stat().st_size < 0.27 * model.path.stat().st_size


def test_static_int8_keeps_the_meaning(minilm: tuple[Model, Data], tmp_path: Path) -> None:
    model, data = minilm
    result = quantize(model, context(data, tmp_path), mode="static")
    assert cosine(model, result, data) >= 0.98
    assert result.path.stat().st_size < 0.4 * model.path.stat().st_size


def test_static_int8_of_every_operator_would_not(
    minilm: tuple[Model, Data], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, data = minilm
    monkeypatch.setattr("portolan.passes.quantize.attends", lambda graph: False)
    result = quantize(model, context(data, tmp_path), mode="static")
    assert cosine(model, result, data) < 0.9
