"""What the node tests' results refuse, and how a case ends in the harness."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from portolan.core import conformance as kept
from portolan.core.conformance import Counts, Measured
from portolan.testing import conformance
from portolan.testing.conformance import Case, Conformance, by_onnx_runtime

VERSIONS = {"runtime": "1.0"}
OPERATORS = {"Abs": Counts(3, 0, 1), "Det": Counts(0, 0, 2), "Exp": Counts(0, 1, 1), "Not": Counts(0, 0, 3)}
MEASURED = Measured(VERSIONS, {}, Counts(3, 1, 7), OPERATORS, ("Det",))


def test_an_operator_that_it_said_to_lack_is_lacking() -> None:
    assert MEASURED.lacks({"Abs": 1, "Det": 1}, lambda: VERSIONS) == "Det"


def test_one_that_was_always_refused_for_something_else_is_not() -> None:
    """ONNX tests `Not` with an operator set of 2017 alone, and that is what importers refuse."""
    assert MEASURED.lacks({"Not": 1}, lambda: VERSIONS) is None
    assert all("Not" not in kept.table()[name].lacking for name in ("torch", "xla"))


def test_one_that_runs_or_is_wrong_or_was_never_asked_is_not() -> None:
    """A wrong answer is for verification to find: the model's own may be right."""
    assert MEASURED.lacks({"Abs": 1, "Exp": 1, "Nobody": 1}, lambda: VERSIONS) is None


def test_other_versions_are_not_known() -> None:
    assert MEASURED.lacks({"Det": 1}, lambda: {"runtime": "1.1"}) is None
    assert MEASURED.lacks({"Det": 1}, lambda: {"runtime": "1.0+cpu"}) == "Det"


def test_versions_are_read_only_where_they_decide() -> None:
    def never() -> dict[str, str]:
        raise AssertionError("nothing depends on them")

    assert MEASURED.lacks({"Abs": 1, "Nobody": 1}, never) is None


def test_backends_refuse_by_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from portolan.backends.onnxruntime import onnxruntime
    from portolan.core.model import Model
    from portolan.core.signature import Signature
    from portolan.testing.models import this_machine

    table = {"onnxruntime": replace(MEASURED, versions=onnxruntime.versions())}
    monkeypatch.setattr(kept, "table", lambda: table)
    model = Model("m", Path("m.onnx"), "0", Signature((), ()), operators={"Det": 1})
    assert onnxruntime.refuse(model, this_machine()) == "`onnxruntime` has no operator `Det`"
    assert onnxruntime.refuse(replace(model, operators={"Abs": 1}), this_machine()) is None


def case(right: float, kind: int = TensorProto.FLOAT, operator: str = "Abs") -> Case:
    sides = [[helper.make_tensor_value_info(n, kind, [2])] for n in ("x", "y")]
    graph = helper.make_graph([helper.make_node(operator, ["x"], ["y"])], "g", *sides)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    return Case("one", model, [np.float32([-1, 2])], [np.float32([1, right])], 1e-3, 1e-7)


def test_how_a_case_ends() -> None:
    """Right, wrong, refused by the runtime, refused before; and the worker lives on."""
    with Conformance("onnxruntime") as run:
        assert run.options == {"threads": 1}
        assert run.run(case(2)).status == "pass"
        wrong = run.run(case(3))
        assert wrong.status == "fail"
        assert "Mismatched" in wrong.reason
        lacking = run.run(case(2, operator="StringNormalizer"))
        assert lacking.status == "unsupported"
        assert run.run(case(2)).status == "pass"


def test_a_sequence_is_two_tensors() -> None:
    value = helper.make_tensor_sequence_value_info("x", TensorProto.FLOAT, None)
    twice = helper.make_tensor_sequence_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph([helper.make_node("SequenceInsert", ["x", "more"], ["y"])], "g", [
        value, helper.make_tensor_value_info("more", TensorProto.FLOAT, [1]),
    ], [twice])  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    given, more = [np.float32([1, 2])], np.float32([3])
    one = Case("sequence", model, [given, more], [[*given, more]], 1e-3, 1e-7)
    with Conformance("onnxruntime") as run:
        assert run.run(one).status == "pass"
        assert run.run(replace(one, outputs=[given])).reason == "2 elements instead of 1"
    assert by_onnx_runtime(one).status == "pass"


def test_strings_reach_a_runtime() -> None:
    sides = [[helper.make_tensor_value_info(n, TensorProto.STRING, [2])] for n in ("x", "y")]
    graph = helper.make_graph([helper.make_node("StringConcat", ["x", "x"], ["y"])], "g", *sides)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    x = np.array(["a", "b"], np.object_)
    one = Case("strings", model, [x], [np.array(["aa", "bb"], np.object_)], 1e-3, 1e-7)
    with Conformance("onnxruntime") as run:
        assert run.run(one).status == "pass"


def test_a_crash_is_a_failure_of_its_case_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conformance, "_PATIENCE", 0.0)
    with Conformance("onnxruntime") as run:
        assert run.run(case(2)).status == "fail"
        monkeypatch.setattr(conformance, "_PATIENCE", 60.0)
        assert run.run(case(2)).status == "pass"


def test_the_kept_table_names_operators_of_onnx() -> None:
    names = {schema.name for schema in onnx.defs.get_all_schemas()}
    for name, measured in kept.table().items():
        assert set(measured.operators) <= names, name
        assert measured.total.cases >= sum(counts.cases for counts in measured.operators.values())


@pytest.mark.parametrize(
    ("said", "kept_of_it"),
    [
        ("cannot read `/tmp/x/model.onnx` at all", "cannot read the model at all"),
        ("passes: /home/me/src/torch_.py:12:0: error", "passes: torch_.py:12:0: error"),
        ('loc("/home/me/a b.mlir") and c/runtime/src/x.c:9, 1/2', 'loc("a b.mlir") and c/runtime/src/x.c:9, 1/2'),
    ],
)
def test_a_cause_names_no_folder_of_the_machine_it_was_found_on(said: str, kept_of_it: str) -> None:
    assert conformance._line(ValueError(said)) == kept_of_it


def test_no_cause_that_is_kept_names_one() -> None:
    files = list((Path(__file__).parents[1] / "conformance").glob("*.json"))
    assert len(files) >= 10
    for file in files:
        for cause in json.loads(file.read_text())["exceptions"]:
            assert not re.search(r"(?<![\w.])/[^\s/]+/", cause), (file.name, cause)
