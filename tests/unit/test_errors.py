"""The tree of errors: exit codes as the design lists them, hints, places, and the JSON object of the contract."""

from __future__ import annotations

import inspect
import json

import pytest

from portolan import errors
from portolan.errors import GoalsNotMet, PortolanError, UnknownName, UsageError, WorkerCrashed, nearest

CODES = {
    "PortolanError": 1, "UsageError": 2, "CannotHelp": 2, "UnknownName": 2, "GoalsNotMet": 3, "NoBackend": 4,
    "ModelError": 5, "UnsupportedOperator": 5, "VerificationFailed": 6, "NoResult": 7, "WorkerError": 1,
    "WorkerCrashed": 1, "WorkerTimeout": 1, "EnvironmentGone": 1, "OutOfMemory": 1, "DiskFull": 1, "Interrupted": 130,
}  # fmt: skip
CLASSES = {
    name: kind for name, kind in vars(errors).items() if inspect.isclass(kind) and kind.__module__ == errors.__name__
}


def test_every_error_has_the_exit_code_of_the_design() -> None:
    assert {name: kind.exit_code for name, kind in CLASSES.items()} == CODES


def test_every_error_is_a_portolan_error() -> None:
    assert all(issubclass(kind, PortolanError) for kind in CLASSES.values())


def test_the_docstring_draws_the_tree() -> None:
    """Each class under its base, at its base's depth plus one, with its code (a worker's is its parent's)."""
    above: list[str] = []
    drawn = {}
    for line in (errors.__doc__ or "").splitlines():
        words = line.replace("├──", "   ").replace("└──", "   ").replace("│", " ").split()
        if not words or words[0] not in CODES:
            continue
        depth = (len(line) - len(line.lstrip(" ├└│─"))) // 4
        above[depth:] = [words[0]]
        drawn[words[0]] = above[depth - 1] if depth else "Exception"
        if len(words) > 1:
            assert int(words[1]) == CODES[words[0]]
    assert drawn == {name: kind.__bases__[0].__name__ for name, kind in CLASSES.items()}


def test_json_is_the_failure_object_of_the_contract() -> None:
    error = UsageError("`x` does not fit", hint="use `y`", where="portolan.toml:3")
    wanted = {"error": {"code": 2, "message": "`x` does not fit", "where": "portolan.toml:3", "hint": "use `y`"}}
    assert json.loads(json.dumps(error.to_json())) == wanted
    assert PortolanError("m").to_json() == {"error": {"code": 1, "message": "m", "where": None, "hint": None}}


def test_text_is_the_message() -> None:
    assert str(UsageError("what happened", hint="do this")) == "what happened"


def test_goals_not_met_carries_the_closest() -> None:
    closest = object()
    assert GoalsNotMet("no trial met `min size`", closest=closest).closest is closest


def test_a_workers_error_keeps_the_end_of_what_it_printed() -> None:
    assert WorkerCrashed("signal 11", stderr="oh no").stderr == "oh no"


@pytest.mark.parametrize(
    ("name", "known", "hint"),
    [
        ("opnvino", ["torch", "openvino"], "did you mean `openvino`?"),
        ("OPENVINO", ["torch", "openvino"], "did you mean `openvino`?"),
        ("conv", ["Conv", "Gemm"], "did you mean `Conv`?"),
        ("zebra", ["torch", "openvino"], "known: openvino, torch"),
        ("zebra", [], "known: none"),
    ],
)
def test_nearest(name: str, known: list[str], hint: str) -> None:
    assert nearest(name, known) == hint
    error = UnknownName("backend", name, known, where="here")
    assert (error.message, error.hint, error.where, error.name) == (f"no backend named `{name}`", hint, "here", name)
