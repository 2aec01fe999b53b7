from __future__ import annotations

import numpy as np
import pytest

from portolan.errors import UnknownName, UsageError
from portolan.measure.metric import load_metric

GOOD = """
from __future__ import annotations
import dataclasses
import numpy as np

@dataclasses.dataclass
class Weights:
    each: float = 1.0

def top1(outputs, labels):
    return Weights().each * (outputs["y"].argmax(-1) == labels).mean()

def broken(outputs, labels):
    return outputs["z"]

def late(outputs, labels):
    import neighbour_of_the_metric
    return neighbour_of_the_metric.VALUE
"""


@pytest.fixture
def file(tmp_path):
    """Writes a Python file and gives its path as text."""

    def write(text, name="metrics.py"):
        path = tmp_path / name
        path.write_text(text)
        return str(path)

    return write


def failure(spec):
    with pytest.raises(UsageError) as caught:
        load_metric(spec)
    return caught.value


def test_a_metric_is_loaded_and_called(file):
    metric = load_metric(f"{file(GOOD)}:top1")
    assert metric({"y": np.eye(3)}, np.array([0, 1, 0])) == pytest.approx(2 / 3)
    assert metric.name.endswith("metrics.py:top1")


def test_a_metric_may_import_its_neighbour_when_it_is_called(file):
    file("VALUE = 0.25", "neighbour_of_the_metric.py")
    assert load_metric(f"{file(GOOD)}:late")({}, np.empty(0)) == 0.25


@pytest.mark.parametrize("spec", ["metrics.py", "metrics:top1", "metrics.py:", "metrics.py:a-b", ":top1", ""])
def test_another_form(spec):
    error = failure(spec)
    assert error.message == f"`{spec}` does not name a function"
    assert error.hint == "write `file.py:function`"


def test_a_missing_file(tmp_path):
    error = failure(f"{tmp_path / 'metric.py'}:top1")
    assert error.message == f"there is no file `{tmp_path / 'metric.py'}`"
    assert error.hint


def test_a_missing_function_with_the_nearest_one(file):
    path = file(GOOD)
    error = failure(f"{path}:top_1")
    assert isinstance(error, UnknownName)
    assert error.message == "no function in metrics.py named `top_1`"
    assert error.hint == "did you mean `top1`?"


def test_a_file_that_raises_names_its_line(file):
    path = file("x = 1\n\ny = x / 0\n", "crash.py")
    error = failure(f"{path}:f")
    assert error.message == f"`{path}:f` raised ZeroDivisionError: division by zero"
    assert error.where == f"{path}:3"


def test_a_metric_that_raises_names_its_line(file):
    metric = load_metric(f"{file(GOOD)}:broken")
    with pytest.raises(UsageError) as caught:
        metric({"y": np.eye(2)}, np.array([0, 1]))
    assert caught.value.message == f"`{metric.name}` raised KeyError: 'z'"
    assert caught.value.where == f"{metric.name.rpartition(':')[0]}:14"
    assert caught.value.hint


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ("None", "returned None, expected one number"),
        ("'0.9'", "returned a str, expected one number"),
        ("True", "returned a bool, expected one number"),
        ("[0.9]", "returned a list, expected one number"),
        ("numpy.ones((2, 3))", "returned an array of shape 2x3 and type float64, expected one number"),
        ("numpy.array(['a'])", "returned an array of shape 1 and type <U1, expected one number"),
        ("numpy.bool_(True)", "expected one number"),
        ("float('nan')", "returned nan"),
        ("numpy.float32('inf')", "returned inf"),
    ],
)
def test_a_result_that_is_not_a_number(file, returned, message):
    metric = load_metric(f"{file(f'import numpy{chr(10)}def f(outputs, labels): return {returned}')}:f")
    with pytest.raises(UsageError) as caught:
        metric({}, np.empty(0))
    assert message in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize("returned", ["1", "0.5", "numpy.float32(0.5)", "numpy.array([2.0])", "numpy.array(3)"])
def test_every_kind_of_number_is_one(file, returned):
    metric = load_metric(f"{file(f'import numpy{chr(10)}def f(outputs, labels): return {returned}')}:f")
    assert isinstance(metric({}, np.empty(0)), float)
