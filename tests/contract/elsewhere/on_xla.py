"""The XLA backend keeps the contract; run in its own environment by test_environment_backends.py."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from portolan.backends.xla import xla
from portolan.testing.backend import BackendContract
from portolan.testing.models import cases, sized_by_an_input, this_machine


class TestXla(BackendContract):
    backend = xla
    options = {"device": os.environ.get("PORTOLAN_TEST_DEVICE", "cpu")}


def saved(executable: object, folder: Path) -> Path:
    folder.mkdir()
    executable.save(folder)  # type: ignore[attr-defined]
    return folder


def test_weights_as_arguments_are_the_same_answers(tmp_path: Path) -> None:
    for case in cases(tmp_path):
        executable = xla.compile(case.model, this_machine(), weights="arguments")
        case.check(executable.run(case.inputs), 1e-4)
        folder = saved(executable, tmp_path / f"saved-{case.name}")
        case.check(xla.load(folder, weights="arguments").run(case.inputs), 1e-4)


def test_what_was_compiled_is_loaded_and_not_compiled_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each size that was seen lies in the folder; only a new one needs the graph."""
    from portolan.backends.xla import Compiled

    case = next(case for case in cases(tmp_path) if case.other is not None)
    executable = xla.compile(case.model, this_machine())
    executable.run(case.inputs)
    assert executable.facts()["programs"] == 2
    folder = saved(executable, tmp_path / "saved")
    monkeypatch.setattr(Compiled, "_compile", lambda *_: pytest.fail("compiled again"))
    again = xla.load(folder)
    case.check(again.run(case.inputs), 1e-4)


@pytest.mark.parametrize("damage", ["version", "index", "code"])
def test_code_that_does_not_fit_is_compiled_again(tmp_path: Path, damage: str) -> None:
    case = cases(tmp_path)[0]
    folder = saved(xla.compile(case.model, this_machine()), tmp_path / "saved")
    index = folder / "compiled.json"
    if damage == "version":
        data = json.loads(index.read_text())
        index.write_text(json.dumps({**data, "made": ["0.1", *data["made"][1:]]}))
    elif damage == "index":
        index.write_text("{")
    else:
        (folder / "program-0.xla").unlink()
    case.check(xla.load(folder).run(case.inputs), 1e-4)


def test_sizes_that_an_input_holds(tmp_path: Path) -> None:
    """Each is compiled for as it comes, and kept."""
    executable = xla.compile(sized_by_an_input(tmp_path), this_machine())
    for shape in [2, 6], [3, 4], [2, 6]:
        assert executable.run({"x": np.ones(12, np.float32), "shape": np.array(shape)})["y"].shape == tuple(shape)
    assert executable.facts()["programs"] == 2
    folder = saved(executable, tmp_path / "saved")
    assert xla.load(folder).facts()["programs"] == 2
