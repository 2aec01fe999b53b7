from __future__ import annotations

from pathlib import Path

import pytest

import portolan
from portolan.api import Result
from portolan.errors import UsageError


def test_a_race_is_bounded_by_time_alone() -> None:
    with pytest.raises(UsageError, match="`40 trials` is no time") as caught:
        portolan.bench("model.onnx", budget="40 trials")
    assert caught.value.hint == "write `60s` or `5min`"


def test_a_race_of_nothing_is_refused() -> None:
    with pytest.raises(UsageError, match="nothing to measure"):
        portolan.bench()


def test_a_result_has_the_keys_of_the_contract_as_attributes() -> None:
    found = Result("bench", {"arms": [1], "noise": None})
    assert found.arms == [1]
    assert found.to_json() == {"arms": [1], "noise": None}
    with pytest.raises(AttributeError, match="the result of `bench` has no `nose`; it has arms, noise"):
        _ = found.nose


def test_a_result_in_html_is_escaped() -> None:
    assert "<b>" not in Result("inspect", {"name": "<b>"})._repr_html_()


def test_inspect_of_a_factory_uses_the_shapes_to_read_it(tmp_path: Path) -> None:
    source = tmp_path / "net.py"
    source.write_text("import torch\n\ndef net():\n    return torch.nn.Linear(16, 4).eval()\n")
    found = portolan.inspect(f"{source}:net", shapes={"input": (2, 16)})
    assert found.inputs[0]["shape"] == [2, 16]
    assert found.flops == 2 * 2 * 16 * 4 + 2 * 4
